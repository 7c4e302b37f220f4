"""Steers every request by its settings, and leaves the rows of the others unchanged.

Settings belong to requests, so requests with different settings share a batch. vLLM has two model runners, each with
an interface, and takes a plugin for both: `LogitsProcessor` and `LogitsProcessorV2`. Where drafts are verified, a
request has several rows, and each is steered by the signal of its own text. The second runner's interface is made for
that. The first runner's is not, see `upstream.worker`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from otterlm.decoding.steering import contrast, guide
from otterlm.engines.requests import Served
from otterlm.engines.settings import Settings
from otterlm.engines.vllm.kernels.candidates import guide_rows, operator_for
from otterlm.engines.vllm.rows import rows_of
from otterlm.engines.vllm.upstream import served, shared
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


class Row(NamedTuple):
    """A row of logits is steered by the settings of its request, and by the state of its own text.

    Attributes:
        logits: its index among the logits.
        state: its index among the model's states.
        request: the row or slot of its request.
    """

    logits: int
    state: int
    request: int


class Group(NamedTuple):
    """A group has the rows that are steered at once, in rising order.

    Attributes:
        way: their settings.
        rows: their indices among the logits, `[n]` int64.
        logits: the same, as an index that makes no copy where it is all rows.
        states: as an index, among the model's states.
        weight: of each, over the unit of the adapter where it adds, `[n, 1]`.
    """

    way: Way
    rows: Tensor
    logits: list[int] | slice
    states: list[int] | slice
    weight: Tensor


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
        self._grouped: tuple[Any, list[Group]] | None = None  # of the latest step: most steps have the rows of the last

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
        if batch_update:
            self._grouped = None
        process_dict_updates(self._settings, batch_update, lambda params, _, __: self._read(params))

    @property
    def steers(self) -> bool:
        """Says whether a request of the batch steers."""
        return bool(self._settings)

    def apply_with_spec_decode(self, logits: Tensor, num_draft_tokens: Sequence[int]) -> Tensor:
        """Steers the rows that verify drafts, in place. Their requests' last rows are steered by `apply`.

        Args:
            logits: `[sum of drafts, V]`.
            num_draft_tokens: how many drafts are verified, of each request.
        """
        rows = rows_of(num_draft_tokens)
        # Each request before has a last row among the states, and none among these logits.
        return self._steer(
            [Row(state - request, state, request) for request in self._settings for state in rows[request][:-1]],
            logits,
        )

    # -- the second runner ---------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Adds a request that entered a slot. Returns whether it steers."""
        self._settings.pop(req_idx, None)
        self._grouped = None
        if settings := self._read(sampling_params):
            self._settings[req_idx] = settings
        return req_idx in self._settings

    # -- both ----------------------------------------------------------------------------------------------------

    def apply(self, logits: Tensor, context: LogitsContext | None = None) -> Tensor:
        """Steers `[N, V]` logits, in place.

        Args:
            logits: of the first runner, each request's last row; of the second, all rows, or some that follow each
                other.
            context: of the second runner. It says which slots the rows belong to.
        """
        if not self._settings:
            return logits
        model = self._shared.model
        if context is None:
            return self._steer([Row(row, model.rows[row][-1], row) for row in self._settings], logits)
        slots = context.expanded_idx_mapping
        first = slots.storage_offset() - model.slots.storage_offset()
        return self._steer(
            [Row(row, first + row, slot) for row, slot in enumerate(slots.tolist()) if slot in self._settings],
            logits,
        )

    def _read(self, params: SamplingParams) -> Settings | None:
        settings = self._served.settings(params.extra_args)
        return None if settings.steer is None else settings

    def _steer(self, rows: list[Row], logits: Tensor) -> Tensor:
        sizes = {name: len(states) for name, states in self._shared.model.states.items()}
        key = rows, len(logits), sizes
        if self._grouped is None or self._grouped[0] != key:
            self._grouped = key, self._group(sorted(rows), logits, sizes)
        for group in self._grouped[1]:
            self._steer_alike(group, logits)
        return logits

    def _group(self, rows: list[Row], logits: Tensor, sizes: dict[str, int]) -> list[Group]:
        """Groups rows, in the order of the logits, by how they are steered."""
        ways: dict[Way, list[Row]] = {}
        for row in rows:
            settings = self._settings[row.request]
            if settings.steer is not None:
                way = Way(settings.steer, settings.top_k, settings.min_p, settings.top_p)
                ways.setdefault(way, []).append(row)
        groups = []
        for way, alike in ways.items():
            at = [row.logits for row in alike]
            states = _index([row.state for row in alike], sizes[way.signal])
            weight = logits.new_tensor([self._settings[row.request].weight for row in alike])[:, None]
            if Capability.REPLACES not in self._served.signals[way.signal]:
                weight = weight / self._shared.model.unit(way.signal)
            groups.append(Group(way, torch.tensor(at), _index(at, len(logits)), states, weight))
        return groups

    def _steer_alike(self, group: Group, logits: Tensor) -> None:
        model, way = self._shared.model, group.way
        signal = model.signal(way.signal, group.states)
        if Capability.REPLACES in self._served.signals[way.signal]:
            scores = logits[group.logits]  # [n, V]
            difference = model.gather(signal.difference()).to(scores)
            logits[group.logits] = contrast(scores, difference, group.weight, way.top_p)
            return
        of = functools.partial(model.rewards, signal)
        if (built := operator_for(logits, way.top_k, way.min_p)) is not None:
            guide_rows(built, logits, group.rows, of, group.weight, way.min_p)
        else:
            logits[group.logits] = guide(logits[group.logits], of, group.weight, way.top_k, way.min_p)


def _index(rows: list[int], count: int) -> list[int] | slice:
    """Returns an index of rows in rising order. All rows are a slice: a view, which costs no copy."""
    return slice(None) if len(rows) == count else rows
