"""What a request may ask for, in `SamplingParams.extra_args` or the OpenAI API's `vllm_xargs`.

    otter_weight     how far to steer: of a reward, the weight; of a contrast, alpha. 0: the base
    otter_signal     the adapter that steers; may be left out where one can
    otter_top_k      with a reward: score the base's k likeliest tokens and rule out the others
    otter_top_p      with a contrast: the base's nucleus that stays possible
    otter_threshold  end the response when its reward falls under this
    otter_patience   for so many tokens in a row
    otter_guard      the adapter whose reward that is; may be left out where there is one
    otter_rewards    1: the reward of every reward adapter beside every token

What is ended, or given out, goes through the adapters' channels (`otterlm.engines.vllm.channels`): the request must
have them among `stop_token_ids`, or `logprob_token_ids`. `sampling_arguments` says which.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otterlm.errors import OtterError

PREFIX = "otter_"


@dataclass(frozen=True, slots=True)
class Settings:
    """A request's, checked. `steer` and `guard` name adapters; None: not asked for."""

    steer: str | None = None
    weight: float = 0.0
    top_k: int | None = None
    top_p: float = 0.9
    guard: str | None = None
    threshold: float = -math.inf
    patience: int = 1
    rewards: bool = False


def read_settings(arguments: Mapping[str, Any] | None, kinds: Mapping[str, str], vocabulary_size: int) -> Settings:
    """Checks a request.

    Args:
        arguments: its extra arguments; those that do not begin with `otter_` are others' business.
        kinds: of the folder's adapters: `reward`, `contrast` or `draft`, by name.
        vocabulary_size: the base's.

    Raises:
        OtterError: an argument is unknown or out of range, or no adapter fits.
    """
    own = {name[len(PREFIX) :]: value for name, value in (arguments or {}).items() if name.startswith(PREFIX)}
    known = ("weight", "signal", "top_k", "top_p", "threshold", "patience", "guard", "rewards")
    for name in own:
        if name not in known:
            raise OtterError(f"unknown argument {PREFIX}{name}; there are: {', '.join(PREFIX + k for k in known)}")
    weight = _number(own, "weight", 0.0)
    top_k = _whole(own, "top_k", vocabulary_size)
    top_p = _number(own, "top_p", 0.9)
    if not 0 < top_p <= 1:
        raise OtterError(f"otter_top_p must be above 0 and at most 1, got {top_p!r}")
    steer = guard = None
    if weight != 0 or "signal" in own:
        steer = _adapter(own, "signal", kinds, ("reward", "contrast"))
    if top_k is not None and (steer is None or kinds[steer] != "reward"):
        raise OtterError("otter_top_k goes with the otter_weight of a reward")
    if "threshold" in own:
        guard = _adapter(own, "guard", kinds, ("reward",))
    elif "patience" in own or "guard" in own:
        raise OtterError("otter_patience and otter_guard go with otter_threshold")
    if own.get("rewards", 0) not in (0, 1):
        raise OtterError(f"otter_rewards must be 0 or 1, got {own['rewards']!r}")
    return Settings(
        steer=steer if weight != 0 else None,
        weight=weight,
        top_k=top_k,
        top_p=top_p,
        guard=guard,
        threshold=_number(own, "threshold", -math.inf),
        patience=_whole(own, "patience", 1 << 20) or 1,
        rewards=own.get("rewards", 0) == 1,
    )


def sampling_arguments(
    arguments: Mapping[str, Any], kinds: Mapping[str, str], channels: Mapping[str, int], vocabulary_size: int
) -> dict[str, Any]:
    """What a request with these extra arguments needs beside them, as `SamplingParams` and the OpenAI API name it.

    Raises:
        OtterError: see `read_settings`.
    """
    settings = read_settings(arguments, kinds, vocabulary_size)
    needs: dict[str, Any] = {}
    if settings.guard is not None:
        needs["stop_token_ids"] = [channels[settings.guard]]
    if settings.rewards:
        if not channels:
            raise OtterError("otter_rewards needs a reward adapter; this folder has none")
        needs["logprob_token_ids"] = list(channels.values())
    return needs


def check_request(params: Any, kinds: Mapping[str, str], channels: Mapping[str, int], vocabulary_size: int) -> None:
    """That `SamplingParams` hold what their extra arguments need.

    Raises:
        OtterError: they do not.
    """
    for name, tokens in sampling_arguments(params.extra_args or {}, kinds, channels, vocabulary_size).items():
        if not set(tokens) <= set(getattr(params, name) or ()):
            raise OtterError(f"{name} must hold {tokens}: make the request with otterlm.engines.vllm.client")


def _number(own: dict[str, Any], name: str, default: float) -> float:
    value = own.get(name, default)
    if name in own and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
        raise OtterError(f"{PREFIX}{name} must be a finite number, got {value!r}")
    return float(value)


def _whole(own: dict[str, Any], name: str, largest: int) -> int | None:
    value = own.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest):
        raise OtterError(f"{PREFIX}{name} must be a whole number from 1 to {largest}, got {value!r}")
    return value


def _adapter(own: dict[str, Any], argument: str, kinds: Mapping[str, str], fitting: tuple[str, ...]) -> str:
    names = [name for name, kind in kinds.items() if kind in fitting]
    name = own.get(argument)
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        what = f"unknown signal {name!r} in" if name is not None else "name an adapter in"
        raise OtterError(f"{what} {PREFIX}{argument}; there are: {', '.join(names) or 'none that can do this'}")
    return str(name)
