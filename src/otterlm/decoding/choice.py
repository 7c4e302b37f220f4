"""Chooses interventions for the adapters of a model, and makes the arguments of `generate` that use them."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from otterlm.errors import OtterError
from otterlm.interventions import (
    InterventionSettings,
    InterventionType,
    intervention_type,
    interventions,
    refuse_unused,
)
from otterlm.model import OtterModel
from otterlm.settings import option_name
from otterlm.signals.base import Capability, describe

STEERING = "guidance"
"""What a number that steers is used for where nothing is asked for."""


NUMBER = Capability.PREFIX | Capability.ADDS


def methods() -> list[str]:
    """Returns the names of the interventions that a number of every prefix, or a guard, is used for, one at a time."""
    return [each.name for each in interventions(NUMBER | Capability.CLASSES) if each.plug != "stopping_criteria"]


def check_method(method: str | None, allowed: Sequence[str]) -> str | None:
    """Returns a method's name, or None for what each adapter can do.

    Raises:
        OtterError: it is not one of those that are allowed.
    """
    if method is not None and method not in allowed:
        raise OtterError(f"--method must be one of {', '.join(allowed)}, got {method!r}")
    return method


def generate_arguments(
    model: OtterModel, settings: InterventionSettings, method: str | None = None, requested: Collection[str] = ()
) -> dict[str, Any]:
    """Makes the arguments of `model.generate` by which the adapters that are on intervene.

    Args:
        model: with its adapters.
        settings: of the interventions.
        method: what numbers of prefixes are used for, one of `methods`; None: guidance, of those that can steer.
        requested: settings that somebody chose values for, and which have to be of use.

    Raises:
        OtterError: an adapter cannot be used by the method, nothing takes one of the settings asked for, or two
            adapters each need a decoding loop of their own.
    """
    chosen = [pair for name in model.active_adapters for pair in _uses(model, name, settings, method)]
    used = {use.name: use for _, use in chosen}
    if method is not None and method not in used:
        needs = intervention_type(method).needs
        raise OtterError(f"--method {method} is for an adapter that {describe(needs)}, and none does: leave it out")
    refuse_unused(requested, used.values(), interventions(), option_name)
    return plug_in(model, chosen, settings)


def plug_in(
    model: OtterModel, chosen: Sequence[tuple[str, InterventionType]], settings: InterventionSettings
) -> dict[str, Any]:
    """Makes the arguments of `model.generate` that use interventions.

    Args:
        model: with its adapters.
        chosen: names of adapters, each with an intervention that it is used for.
        settings: of the interventions.

    Raises:
        OtterError: an adapter or a setting does not fit, or two adapters each need a decoding loop of their own.
    """
    arguments: dict[str, Any] = {}
    loops: list[str] = []
    seen: set[str] = set()
    for name, use in chosen:
        # One nucleus, the base's: the first of several contrasts or guidances rules out what is not in it.
        made = use.make(model, name, replace(settings, top_p=1.0, min_p=0.0) if use.name in seen else settings)
        seen.add(use.name)
        if use.plug == "custom_generate":
            loops.append(use.name)
            arguments["custom_generate"] = made
        else:
            arguments.setdefault(use.plug, []).append(made)
        arguments |= use.arguments(settings)
    if len(set(loops)) > 1:
        raise OtterError(f"{' and '.join(loops)} both need the decoding loop: use --method {STEERING} with drafts")
    if len(loops) > 1:
        names = ", ".join(name for name, use in chosen if use.plug == "custom_generate")
        raise OtterError(f"{loops[0]} takes one adapter, got {names}")
    return arguments


def _uses(
    model: OtterModel, name: str, settings: InterventionSettings, method: str | None
) -> list[tuple[str, InterventionType]]:
    """Returns what an adapter is used for. A guard watches, and steers only where the method asks for it."""
    can = _can(model, name)
    uses = [each.name for each in interventions(can) if each.needs in (Capability.REPLACES, Capability.DRAFTS)]
    number, guards = bool(can & NUMBER), Capability.CLASSES in can
    takes = () if method is None else intervention_type(method).takes
    if number and method is not None and _is_meant(model, name, method):
        model.adapter_name(name, intervention_type(method).needs)
        uses.append(method)
    elif Capability.ADDS in can and not guards:
        uses.append(STEERING)
    takes_back = "threshold" in takes or "alarm" in takes  # which no stop can follow
    if guards and not takes_back:
        uses.append("guard")
    elif number and not guards and not takes_back and settings.threshold > float("-inf"):
        uses.append("stop")
    return [(name, intervention_type(use)) for use in uses]


def _is_meant(model: OtterModel, name: str, method: str) -> bool:
    """Says whether a method is for an adapter: one of guards for each guard, and another one for the adapters that only
    give numbers, or for a guard where there are no such."""
    guard = Capability.CLASSES in _can(model, name)
    if Capability.CLASSES in intervention_type(method).needs:
        return guard
    numbers = [_can(model, other) for other in model.active_adapters if _can(model, other) & NUMBER]
    return not guard or all(Capability.CLASSES in can for can in numbers)


def _can(model: OtterModel, name: str) -> Capability:
    return model.adapter(name).config.signal.capabilities
