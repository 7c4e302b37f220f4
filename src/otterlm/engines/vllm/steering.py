"""Steers every request by its settings, and leaves the rows of the others unchanged.

Settings belong to requests, so requests with different settings share a batch. vLLM has two model runners, each with
an interface, and takes a plugin for both: `LogitsProcessor` and `LogitsProcessorV2`.
"""

from typing import Any, NamedTuple

from torch import Tensor

from otterlm.decoding.steering import contrast, guide
from otterlm.engines.requests import Served
from otterlm.engines.settings import Settings
from otterlm.engines.vllm.models import shared
from otterlm.engines.vllm.upstream import served
from otterlm.engines.vllm.upstream.names import (
    BatchUpdate,
    LogitsContext,
    LogitsProcessor,
    LogitsProcessorV2,
    SamplingParams,
    VllmConfig,
    process_dict_updates,
)
from otterlm.signals.base import Capability


class Way(NamedTuple):
    """A way holds the settings that rows must share to be steered at once."""

    signal: str
    top_k: int | None
    min_p: float
    top_p: float


class Steering(LogitsProcessor, LogitsProcessorV2):
    """The logits processor steers. vLLM makes one in every worker; with a model that is not widened it does nothing.

    Args:
        vllm_config: the engine's.
        runner_state: of the first runner, its device and whether memory is pinned; of the second, its requests' state.
    """

    def __init__(self, vllm_config: VllmConfig, *runner_state: Any) -> None:
        self._config = vllm_config
        self._shared = shared(vllm_config)
        self._settings: dict[int, Settings] = {}  # of requests that steer, by row (first runner) or slot (second)

    @property
    def _served(self) -> Served:
        """Returns what is served now: adapters come and go."""
        return served(self._config)

    # -- the first runner ----------------------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """Returns False: a steered row may choose another token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests that entered, left and moved in the batch."""
        process_dict_updates(self._settings, batch_update, lambda params, _, __: self._read(params))

    # -- the second runner ---------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Adds a request that entered a slot. Returns whether it steers."""
        self._settings.pop(req_idx, None)
        if settings := self._read(sampling_params):
            self._settings[req_idx] = settings
        return req_idx in self._settings

    # -- both ----------------------------------------------------------------------------------------------------

    def apply(self, logits: Tensor, context: LogitsContext | None = None) -> Tensor:
        """Steers `[N, V]` logits, in place. The second runner passes the slots that the rows belong to."""
        if not self._settings:
            return logits
        rows = self._settings
        if context is not None:
            slots = context.expanded_idx_mapping.tolist()
            rows = {row: rows[slot] for row, slot in enumerate(slots) if slot in rows}
        ways: dict[Way, list[int]] = {}
        for row, settings in sorted(rows.items()):
            if settings.steer is not None:
                ways.setdefault(Way(settings.steer, settings.top_k, settings.min_p, settings.top_p), []).append(row)
        for way, steered in ways.items():
            self._steer(way, steered, [rows[row].weight for row in steered], logits)
        return logits

    def _read(self, params: SamplingParams) -> Settings | None:
        settings = self._served.settings(params.extra_args)
        return None if settings.steer is None else settings

    def _steer(self, way: Way, rows: list[int], weights: list[float], logits: Tensor) -> None:
        # All rows are a slice: a view, which costs no copy.
        index = slice(None) if len(rows) == len(logits) else rows
        scores, model = logits[index], self._shared.model  # [n, V]
        signal = model.signal(way.signal, index)
        weight = scores.new_tensor(weights)[:, None]  # [n, 1]
        if Capability.REPLACES in self._served.signals[way.signal]:
            logits[index] = contrast(scores, model.gather(signal.difference()).to(scores), weight, way.top_p)
            return
        rewards = model.gather(signal.vocabulary())
        of = lambda tokens: rewards if tokens is None else rewards.gather(-1, tokens)  # noqa: E731
        logits[index] = guide(scores, of, weight / model.unit(way.signal), way.top_k, way.min_p)
