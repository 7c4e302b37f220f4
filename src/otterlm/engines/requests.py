"""Reads what a request may ask of an engine: settings in its extra arguments (`SamplingParams.extra_args` of vLLM, or
`vllm_xargs` over HTTP).

    otter_weight     how far to steer: of a reward, the weight; of a contrast, alpha. 0: the base
    otter_signal     the adapter that steers; may be left out where one can
    otter_top_k      with a reward: score the base's k likeliest tokens and rule out the others
    otter_min_p      with a reward: rule out tokens with less than this share of the likeliest one's probability
    otter_top_p      with a contrast: the base's nucleus that stays possible
    otter_threshold  end the response when its reward falls under this
    otter_patience   for so many tokens in a row
    otter_guard      the adapter whose reward that is, or the guard that ends the response by its alarm; may be left out
                     where there is one
    otter_alarm      the probability at which a token is a hit for the guard: of all labels, or JSON text of an object,
                     labels to probabilities
    otter_hits       end the response when so many tokens
    otter_window     of the latest so many are hits
    otter_refuse     1: a prompt that the guard flags gets no token
    otter_rewards    1: the reward of every reward adapter beside every token
    otter_guards     1: the probability of each label of every guard beside every token
    otter_prompt     1: both, of the prompt, before the first token

Nothing here needs torch or Transformers.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from otterlm.checks import check_number, shown
from otterlm.engines.capabilities import signal_config
from otterlm.engines.spelling import resembles_prefix
from otterlm.errors import OtterError
from otterlm.interventions import InterventionSettings, InterventionType, intervention_type, refuse_unused
from otterlm.settings import rule
from otterlm.signals.alarm import Alarm, AlarmSettings, alarm_settings
from otterlm.signals.base import STEERS, Capability, ClassConfig

PREFIX = "otter_"
STEERING = (intervention_type("guidance"), intervention_type("contrast"))
STOP, GUARD = intervention_type("stop"), intervention_type("guard")


def _arguments_of(*used: InterventionType) -> tuple[str, ...]:
    """Returns the settings that interventions take, as requests name them: alpha is the weight of a contrast."""
    return tuple(dict.fromkeys("weight" if name == "alpha" else name for use in used for name in use.takes))


RETURNED = ("rewards", "guards", "prompt")
"""What may be asked for that makes responses have more fields."""
STOPPING = (*_arguments_of(STOP), "guard", *GUARD.takes, "refuse")
NAMES = tuple(dict.fromkeys(("weight", "signal", *_arguments_of(*STEERING), *STOPPING, *RETURNED)))
"""What may be asked for, without the prefix."""
DEFAULTS = InterventionSettings()
"""Those of all of Otter. Two are a request's alone: nothing steers unless it asks, and then over all tokens."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Holds the checked settings of a request. `steer`, `guard` and `refuse` name adapters; None: not asked for.

    A guard ends the response by its labels where there is an alarm, and else by its reward.
    """

    steer: str | None = None
    weight: float = 0.0
    top_k: int | None = None
    min_p: float = DEFAULTS.min_p
    top_p: float = DEFAULTS.top_p
    guard: str | None = None
    threshold: float = DEFAULTS.threshold
    patience: int = DEFAULTS.patience
    alarm: AlarmSettings | None = None
    refuse: str | None = None
    rewards: bool = False
    guards: bool = False
    prompt: bool = False

    @property
    def returns(self) -> bool:
        """Says whether the response is to have more fields."""
        return self.rewards or self.guards or self.prompt

    @property
    def asks(self) -> bool:
        """Says whether the request asks for anything that the base alone would not do."""
        return self.returns or any(name is not None for name in (self.steer, self.guard, self.refuse))


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine serves, as far as requests are checked against it.

    Attributes:
        signals: what can be done with each adapter, by name; empty for a model without adapters.
        vocabulary_size: the base's.
        speculates: the engine verifies drafts, and so does not steer.
        guards: the configurations of the adapters that have labels.
    """

    signals: Mapping[str, Capability]
    vocabulary_size: int
    speculates: bool = False
    guards: Mapping[str, ClassConfig] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], speculates: bool = False) -> Self:
        """Reads the `config.json` of an exported folder, or of a model without adapters."""
        adapters = config.get("otter") or {}
        configs: dict[str, Any] = {name: signal_config(values["signal"]) for name, values in adapters.items()}
        signals = {name: each.capabilities for name, each in configs.items()}
        guards = {name: each for name, each in configs.items() if Capability.CLASSES in signals[name]}
        return cls(signals, config.get("vocab_size", 0), speculates, guards)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Returns the adapters that have a number beside every token."""
        return tuple(name for name, each in self.signals.items() if Capability.PREFIX in each)

    def watched(self, settings: Settings) -> tuple[str, ...]:
        """Returns the adapters that are to be read beside every token of a request."""
        names = [name for name in (settings.guard, settings.refuse) if name is not None]
        names += self.numbers if settings.rewards or settings.prompt else ()
        names += self.guards if settings.guards or settings.prompt else ()
        return tuple(dict.fromkeys(names))

    def settings(self, arguments: Mapping[str, Any] | None) -> Settings:
        """Checks the extra arguments of a request.

        Args:
            arguments: those whose names do not begin with `otter_`, or nearly so, are left to others.

        Raises:
            OtterError: an argument is unknown, out of range or without effect, or the engine cannot do it.
        """
        return _Reader(self, _ours(arguments or {})).read()


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
        rewards, guards, prompt = (self.flag(name) for name in RETURNED)
        if rewards and not self.served.numbers:
            raise OtterError("otter_rewards needs a reward adapter; the model that is served has none")
        if guards and not self.served.guards:
            raise OtterError("otter_guards needs a guard adapter; the model that is served has none")
        if prompt and not (self.served.numbers or self.served.guards):
            raise OtterError("otter_prompt needs a reward or guard adapter; the model that is served has none")
        return Settings(
            **self.steering(),
            **self.guarding(),
            refuse=self.refusing(),
            rewards=rewards,
            guards=guards,
            prompt=prompt,
        )

    def flag(self, name: str) -> bool:
        value = self.arguments.get(name, 0)
        if isinstance(value, bool) or value not in (0, 1):
            raise OtterError(f"{PREFIX}{name} must be 0 or 1, got {shown(value)}")
        return value == 1

    def steering(self) -> dict[str, Any]:
        if "weight" not in self.arguments:
            self.goes_with(("signal", *_arguments_of(*STEERING)), "otter_weight")
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
        if self.served.speculates:
            raise OtterError("otter_weight: this engine verifies drafts (speculative_config), and then cannot steer")
        return {"steer": steer, "weight": weight, **values}

    def guarding(self) -> dict[str, Any]:
        if "threshold" in self.arguments:
            refuse_unused((name for name in GUARD.takes if name in self.arguments), [STOP], [STOP, GUARD], _spelled)
            return {"guard": self.adapter("guard", lambda each: STOP.needs in each), **self.values(STOP)}
        self.goes_with(_arguments_of(STOP), "otter_threshold")
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
            except ValueError as error:
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
        return {name: self.value(name) for name in _arguments_of(*used) if name in self.arguments}

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
        names = [adapter for adapter, each in self.served.signals.items() if fits(each)]
        value = self.arguments.get(name)
        if name not in self.arguments and len(names) == 1:
            return names[0]
        if value not in names:
            what = f"unknown signal {shown(value)} in" if name in self.arguments else "name an adapter in"
            raise OtterError(f"{what} {PREFIX}{name}; there are: {', '.join(sorted(names)) or 'none that can do this'}")
        return str(value)
