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


def methods() -> list[str]:
    """Returns the names of the interventions that a number of every prefix is used for, one at a time."""
    number = Capability.PREFIX | Capability.ADDS
    return [each.name for each in interventions(number) if each.plug != "stopping_criteria"]


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
    """Returns what an adapter is used for."""
    can = model.adapter(name).config.signal.capabilities
    uses = [each.name for each in interventions(can) if each.needs in (Capability.REPLACES, Capability.DRAFTS)]
    number = bool(can & (Capability.PREFIX | Capability.ADDS))
    if number and method is not None:
        model.adapter_name(name, intervention_type(method).needs)
        uses.append(method)
    elif Capability.ADDS in can:
        uses.append(STEERING)
    aimed = method is not None and "threshold" in intervention_type(method).takes
    if number and not aimed and settings.threshold > float("-inf"):
        uses.append("stop")
    return [(name, intervention_type(use)) for use in uses]
