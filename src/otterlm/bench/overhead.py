"""Measures what steering costs beside plain decoding: time, parameters and KV cache, of Otter and separate models.

Weights are random: nothing here depends on them. Every method generates the same number of tokens, greedily, after the
same random prompts.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from otterlm.bench.shapes import SHAPES, adapter_for, random_base
from otterlm.bench.timing import Seconds, take_turns
from otterlm.decoding import CandidateSearch, RewardGuidance
from otterlm.model import OtterModel
from otterlm.peers.args import ARGS
from otterlm.peers.dexperts import DExperts
from otterlm.plan import plan
from otterlm.training.evaluation.bootstrap import median_interval
from otterlm.training.teachers.reward_model import SeparateRewardModel


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting is one cell of the table.

    Attributes:
        shape: of the base, see `otterlm.bench.shapes`.
        batch, prompt, new: sequences, tokens of each prompt, tokens generated.
        top_k: candidates a step.
    """

    shape: str = "smollm2-135m"
    batch: int = 1
    prompt: int = 64
    new: int = 128
    top_k: int = 10


@dataclass(frozen=True, slots=True)
class OverheadRow:
    """A row is one method in one setting.

    Attributes:
        method: its name.
        shape, batch, prompt, new, top_k: see `Setting`.
        extra_parameters, extra_bytes: beside the base.
        extra_kv_bytes_per_token: of the KV cache beside the base's; None where a base's is needed and not known.
        extra_space_saved: 1 - extra parameters / those of a separate model of the base's size.
        tokens_per_second, base_tokens_per_second: over all sequences.
        extra_seconds_per_token: over plain decoding.
        extra_time_saved: 1 - extra seconds / those of ARGS as published.
        extra_time_saved_over_cache: 1 - extra seconds / those of ARGS with a KV cache for its reward model.
        predicted_slowdown: 1 + extra bytes read a step / the base's: the floor where memory is the limit; None for
            methods with passes of another size.
        measured_slowdown: median over the rounds of the seconds / those of plain decoding.
        measured_slowdown_ci95: its interval.
        spread: (slowest - fastest round) / median.
    """

    method: str
    shape: str
    batch: int
    prompt: int
    new: int
    top_k: int
    extra_parameters: int
    extra_bytes: int
    extra_kv_bytes_per_token: int | None
    extra_space_saved: float
    tokens_per_second: float
    base_tokens_per_second: float
    extra_seconds_per_token: float
    extra_time_saved: float
    extra_time_saved_over_cache: float
    predicted_slowdown: float | None
    measured_slowdown: float
    measured_slowdown_ci95: list[float]
    spread: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the row for JSON."""
        return asdict(self)


BASE, STREAM, GUIDANCE, SEARCH = "base", "Otter, rewards read", "Otter, guidance", "Otter, search"
ARGS_CACHED, ARGS_ANEW, TWO_EXPERTS = "ARGS with a reward cache", "ARGS as published", "DExperts"
METHODS = (BASE, STREAM, GUIDANCE, SEARCH, ARGS_CACHED, ARGS_ANEW, TWO_EXPERTS)


def measure(
    setting: Setting, rounds: int = 3, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[OverheadRow]:
    """Times the methods in turn.

    Args:
        setting: the sizes of base, prompts and responses.
        rounds: how often each is timed.
        dtype, device: of all models.
    """
    base = random_base(setting.shape, dtype, device)
    # The reward model and the experts share the base's weights, which changes no time: none of them fits a cache.
    reward_model = SeparateRewardModel.of(base, shared=True).eval()
    otter = OtterModel(base, adapter_for(setting.shape)).eval()
    ids = torch.randint(3, base.config.vocab_size, (setting.batch, setting.prompt), device=device)
    calls = partial(_calls, base, otter, reward_model, ids)
    return _rows(setting, take_turns(calls(setting), calls(replace(setting, new=2)), rounds), dtype)


def _calls(
    base: PreTrainedModel, otter: OtterModel, reward_model: SeparateRewardModel, ids: torch.Tensor, setting: Setting
) -> dict[str, Callable[[], object]]:
    def generate(model: Any, **settings: Any) -> object:
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=setting.new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **settings,
        )

    k = setting.top_k
    return {
        BASE: lambda: generate(base),
        STREAM: lambda: generate(otter),
        GUIDANCE: lambda: generate(otter, logits_processor=[RewardGuidance(otter, 1.0, k)]),
        SEARCH: lambda: generate(otter, custom_generate=CandidateSearch(1.0, k)),
        ARGS_CACHED: lambda: generate(base, logits_processor=[ARGS(reward_model, 1.0, k)]),
        ARGS_ANEW: lambda: generate(base, logits_processor=[ARGS(reward_model, 1.0, k, cached=False)]),
        TWO_EXPERTS: lambda: generate(base, logits_processor=[DExperts(base, base, ids)]),
    }


def _rows(setting: Setting, taken: dict[str, Seconds], dtype: torch.dtype) -> list[OverheadRow]:
    cost = plan(SHAPES[setting.shape], adapter_for(setting.shape), dtype, setting.prompt + setting.new)
    inserted = cost.inserted_parameters + cost.derived_parameters
    base_kv = cost.base_kv_bytes_per_token
    tokens = setting.batch * setting.new
    plain = taken[BASE].median
    space: dict[str, tuple[int, int | None]] = {
        BASE: (0, 0),
        **dict.fromkeys((STREAM, GUIDANCE, SEARCH), (inserted, cost.inserted_kv_bytes_per_token)),
        ARGS_CACHED: (cost.base_parameters, base_kv),
        ARGS_ANEW: (cost.base_parameters, 0),
        TWO_EXPERTS: (2 * cost.base_parameters, None if base_kv is None else 2 * base_kv),
    }
    read = inserted / cost.base_parameters  # of one pass, which reads all weights
    predicted = {BASE: 1.0, STREAM: 1 + read, GUIDANCE: 1 + read, TWO_EXPERTS: 3.0}

    def saved(name: str, rival: str) -> float:
        return 1 - (taken[name].median - plain) / (taken[rival].median - plain)

    return [
        OverheadRow(
            method=name,
            **asdict(setting),
            extra_parameters=space[name][0],
            extra_bytes=space[name][0] * dtype.itemsize,
            extra_kv_bytes_per_token=space[name][1],
            extra_space_saved=1 - space[name][0] / cost.base_parameters,
            tokens_per_second=tokens / seconds.median,
            base_tokens_per_second=tokens / plain,
            extra_seconds_per_token=(seconds.median - plain) / tokens,
            extra_time_saved=saved(name, ARGS_ANEW),
            extra_time_saved_over_cache=saved(name, ARGS_CACHED),
            predicted_slowdown=predicted.get(name),
            measured_slowdown=statistics.median(seconds.over(taken[BASE])),
            measured_slowdown_ci95=median_interval(seconds.over(taken[BASE])),
            spread=seconds.spread,
        )
        for name, seconds in taken.items()
    ]
