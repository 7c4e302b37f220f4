"""Reads what a request asks of an engine, see `otterlm.engines.settings`, and refuses what cannot be honoured.

Nothing here needs torch or Transformers.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from otterlm.checks import check_number, shown
from otterlm.engines.capabilities import signal_config
from otterlm.engines.settings import (
    GUARD,
    NAMES,
    PREFIX,
    RETURNED,
    STEERING,
    STOP,
    Settings,
    arguments_of,
)
from otterlm.engines.spelling import resembles_prefix
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, InterventionType, refuse_unused
from otterlm.settings import rule
from otterlm.signals.alarm import Alarm, alarm_settings
from otterlm.signals.base import STEERS, Capability, ClassConfig

ENTERED = "otter"
"""The extra argument that holds the settings of a request that has entered an engine."""


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine serves, as far as requests are checked against it.

    Attributes:
        signals: what can be done with each adapter, by name; empty for a model without adapters.
        vocabulary_size: the base's.
        guards: the configurations of the adapters that have labels.
        unloaded: adapters that no new request may ask for; requests that began before still may have them.
    """

    signals: Mapping[str, Capability]
    vocabulary_size: int
    guards: Mapping[str, ClassConfig] = field(default_factory=dict)
    unloaded: Collection[str] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], unloaded: Collection[str] = ()) -> Self:
        """Reads the `config.json` of an exported folder, or of a model without adapters."""
        adapters = config.get("otter") or {}
        configs: dict[str, Any] = {name: signal_config(values["signal"]) for name, values in adapters.items()}
        signals = {name: each.capabilities for name, each in configs.items()}
        guards = {
            name: each for name, each in configs.items() if Capability.CLASSES in signals[name] and name not in unloaded
        }
        return cls(signals, config.get("vocab_size", 0), guards, unloaded)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Returns the adapters that have a number beside every token."""
        return tuple(name for name, each in self.loaded.items() if Capability.PREFIX in each)

    @property
    def loaded(self) -> dict[str, Capability]:
        """Returns what can be done with each adapter that requests may ask for."""
        return {name: each for name, each in self.signals.items() if name not in self.unloaded}

    def watched(self, settings: Settings) -> tuple[str, ...]:
        """Returns the adapters that are to be read beside every token of a request."""
        if settings.watched is not None:
            return settings.watched
        names = [name for name in (settings.guard, settings.refuse) if name is not None]
        of_prompt = settings.prompt or settings.prompt_tokens
        names += self.numbers if settings.rewards or of_prompt else ()
        names += self.guards if settings.guards or of_prompt else ()
        return tuple(dict.fromkeys(names))

    def settings(self, arguments: Mapping[str, Any] | None) -> Settings:
        """Checks the extra arguments of a request.

        Args:
            arguments: those whose names do not begin with `otter_`, or nearly so, are left to others.

        Raises:
            OtterError: an argument is unknown, out of range or without effect, or the engine cannot do it.
        """
        entered = (arguments or {}).get(ENTERED)
        if isinstance(entered, Settings):  # which no request over HTTP can hold
            return entered
        return _Reader(self, _ours(arguments or {})).read()

    def enter(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns extra arguments with what they mean now, so that they mean it to the end of the request, whichever
        adapters come and go meanwhile.

        Raises:
            OtterError: as for `settings`.
        """
        settings = self.settings(arguments)
        return {**arguments, ENTERED: replace(settings, watched=self.watched(settings))}


def refuse_stray(fields: Iterable[str]) -> None:
    """Refuses settings that stand beside a request's extra arguments instead of among them.

    Args:
        fields: names of the request's own fields that the server does not know.

    Raises:
        OtterError: one is a setting, or nearly.
    """
    for name in fields:
        if resembles_prefix(name):
            raise OtterError(f"{name} is no field of the request: settings go into vllm_xargs ({_known()})")


def _ours(arguments: Mapping[str, Any]) -> dict[str, Any]:
    settings = {}
    for name, value in arguments.items():
        if name.startswith(PREFIX) and name[len(PREFIX) :] in NAMES:
            settings[name[len(PREFIX) :]] = value
        elif resembles_prefix(name):
            raise OtterError(f"unknown argument {name}; there are: {_known()}")
    return settings


def _spelled(name: str) -> str:
    return PREFIX + name


def _known() -> str:
    return ", ".join(PREFIX + name for name in NAMES)


class _Reader:
    """Reads the settings of one request, without `otter_` before their names."""

    def __init__(self, served: Served, arguments: dict[str, Any]) -> None:
        self.served = served
        self.arguments = arguments

    def read(self) -> Settings:
        if self.arguments and not self.served.signals:
            raise OtterError(f"the model that is served has no adapters: otter_{min(self.arguments)} has no effect")
        returned = {name: self.flag(name) for name in RETURNED}
        if returned["rewards"] and not self.served.numbers:
            raise OtterError("otter_rewards needs a reward adapter; the model that is served has none")
        if returned["guards"] and not self.served.guards:
            raise OtterError("otter_guards needs a guard adapter; the model that is served has none")
        for name in ("prompt", "prompt_tokens"):
            if returned[name] and not (self.served.numbers or self.served.guards):
                raise OtterError(f"{PREFIX}{name} needs a reward or guard adapter; the model that is served has none")
        return Settings(**self.steering(), **self.guarding(), refuse=self.refusing(), **dict[str, Any](returned))

    def flag(self, name: str) -> bool:
        value = self.arguments.get(name, 0)
        if isinstance(value, bool) or value not in (0, 1):
            raise OtterError(f"{PREFIX}{name} must be 0 or 1, got {shown(value)}")
        return value == 1

    def steering(self) -> dict[str, Any]:
        if "weight" not in self.arguments:
            self.goes_with(("signal", *arguments_of(*STEERING)), "otter_weight")
            return {}
        values = self.values(*STEERING)
        weight = values.pop("weight")
        # A weight of 0 asks for the base, and needs no adapter that steers.
        if weight == 0 and "signal" not in self.arguments:
            return {}
        steer = self.adapter("signal", lambda each: bool(each & STEERS))
        used = [each for each in STEERING if each.needs in self.served.signals[steer]]
        refuse_unused(values, used, STEERING, _spelled)
        if weight == 0:
            return values
        return {"steer": steer, "weight": weight, **values}

    def guarding(self) -> dict[str, Any]:
        if "threshold" in self.arguments:
            refuse_unused((name for name in GUARD.takes if name in self.arguments), [STOP], [STOP, GUARD], _spelled)
            return {"guard": self.adapter("guard", lambda each: STOP.needs in each), **self.values(STOP)}
        self.goes_with(arguments_of(STOP), "otter_threshold")
        if not any(name in self.arguments for name in ("guard", *GUARD.takes)):
            return {}
        if self.arguments.get("guard") in self.only_rewards and self.arguments.keys().isdisjoint(GUARD.takes):
            self.goes_with(("guard",), "otter_threshold")
        guard = self.adapter("guard", lambda each: GUARD.needs in each)
        numbers = {name: self.value(name) for name in ("hits", "window") if name in self.arguments}
        return {"guard": guard, "alarm": alarm_settings(self.served.guards[guard], self.alarm(), **numbers)}

    @property
    def only_rewards(self) -> tuple[str, ...]:
        """Returns the adapters that have a number beside every token, and no labels."""
        return tuple(name for name in self.served.numbers if name not in self.served.guards)

    def alarm(self) -> Alarm:
        if "alarm" not in self.arguments:
            return None
        value = self.arguments["alarm"]
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                example = '{"insult": 0.9}'
                raise OtterError(
                    f"otter_alarm must be a probability, or JSON text such as {example}, got {shown(value)}"
                ) from error
        if isinstance(value, Mapping):
            return value
        return float(rule(InterventionSettings, "alarm")("otter_alarm", value))

    def refusing(self) -> str | None:
        if not self.flag("refuse"):
            return None
        guards = tuple(self.served.guards)
        if (named := self.arguments.get("guard")) in guards:
            return str(named)
        if len(guards) != 1:
            raise OtterError(f"otter_refuse: name a guard in otter_guard; there are: {', '.join(guards) or 'none'}")
        return guards[0]

    def goes_with(self, names: tuple[str, ...], what: str) -> None:
        for name in names:
            if name in self.arguments:
                raise OtterError(f"{PREFIX}{name} goes with {what}, and has no effect without it")

    def values(self, *used: InterventionType) -> dict[str, Any]:
        """Returns the request's arguments that interventions take, checked by the rules of all of Otter."""
        return {name: self.value(name) for name in arguments_of(*used) if name in self.arguments}

    def value(self, name: str) -> Any:
        spelled, value = PREFIX + name, self.arguments[name]
        if name == "threshold":
            check_number(spelled, value)  # an infinite one is not asked for: JSON cannot hold it
        limits = {"most": self.served.vocabulary_size} if name == "top_k" else {}
        checked = rule(InterventionSettings, name)(spelled, value, **limits)
        if not isinstance(value, int | float):
            raise OtterError(f"{spelled} must be a number that JSON can hold, got {shown(value)}")
        return checked

    def adapter(self, name: str, fits: Callable[[Capability], bool]) -> str:
        names = [adapter for adapter, each in self.served.loaded.items() if fits(each)]
        value = self.arguments.get(name)
        if name not in self.arguments and len(names) == 1:
            return names[0]
        if value not in names:
            what = f"unknown signal {shown(value)} in" if name in self.arguments else "name an adapter in"
            raise OtterError(f"{what} {PREFIX}{name}; there are: {', '.join(sorted(names)) or 'none that can do this'}")
        return str(value)
