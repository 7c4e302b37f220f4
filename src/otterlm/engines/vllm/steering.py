"""The logits processor: steers every request as it asked, ends those under their threshold, and writes the channels.

Settings belong to requests, so requests with different ones share a batch; rows that ask for nothing are not touched.
vLLM has two model runners, with an interface each, and takes a plugin for both: `LogitsProcessor` and
`LogitsProcessorV2`. The first runner takes log probabilities before it calls `apply`, the second after.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from otterlm.decoding.contrast import contrast
from otterlm.engines import exported
from otterlm.engines.vllm.architectures import ARCHITECTURES
from otterlm.engines.vllm.channels import encode
from otterlm.engines.vllm.models import shared
from otterlm.engines.vllm.settings import Settings, check_request, read_settings

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Request:
    """One request in the batch.

    Attributes:
        settings: what it asked for.
        channels: the adapters whose rewards it wants beside its tokens.
        judged: how far the guard has judged it, in tokens. At first it must not judge the prompt, nor, of a request
            that comes back after a preemption, what is read again in pieces.
        said: its tokens so far, the first runner's own list, which grows; the second counts positions.
        under: for how many tokens in a row its reward has been under the threshold.
    """

    settings: Settings
    channels: tuple[str, ...]
    judged: int
    said: list[int]
    under: int = 0


Rows = dict[int, Request]

Which = slice | list[int]
"""Rows of a tensor; all of them are a slice, which is a view and costs no copy."""


class Steering(LogitsProcessor, LogitsProcessorV2):
    """See the module. vLLM makes one in every worker; with a model that is not ours it does nothing.

    Args:
        vllm_config: the engine's.
        place: of the first runner, its device and whether memory is pinned; of the second, the states of the requests.
    """

    def __init__(self, vllm_config: VllmConfig, *place: Any) -> None:
        config: Any = vllm_config.model_config.hf_config
        self._states: Any = place[0]
        self._requests: Rows = {}  # by row (first runner) or slot (second)
        self._kept: list[tuple[Which, int, Tensor]] = []
        names = vllm_config.model_config.architectures or []
        self._active = any(f"Otter{name}" in names for name in ARCHITECTURES)
        if self._active:
            self._vocabulary_size: int = config.vocab_size
            self._kinds = exported.read_kinds(config)
            self._channels: dict[str, int] = config.otter_channels
            self._shared = shared(vllm_config)
            self._shared.steering = self

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuses a request whose settings are wrong, before it reaches the engine.

        Raises:
            OtterError: they are (vLLM makes a 400 of it).
        """
        if exported.latest:
            config: Any = exported.latest[0]
            kinds, channels = exported.read_kinds(config), config.otter_channels
            check_request(sampling_params, kinds, channels, config.vocab_size)

    # -- the first runner ----------------------------------------------------------------------------------------

    def is_argmax_invariant(self) -> bool:
        """No: what is steered may say another token."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Requests that came, went and moved in the batch."""
        if self._active:
            process_dict_updates(
                self._requests, batch_update, lambda params, _, said: self._request(params, len(said), said)
            )

    def write_channels(self, logits: Tensor) -> None:
        """Puts the rewards that requests want into their rows of the base's logits, `[N, V]`, in place, where the
        runner takes log probabilities next; `apply` puts back what was there."""
        # Fewer rows than requests: a pass without sampling, to measure memory.
        sampling = len(logits) > max(self._requests, default=len(logits))
        self._kept = self._write(self._requests, logits) if sampling else []

    # -- the second runner ---------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """A request that came into a slot. Returns whether it asks for anything."""
        self._requests.pop(req_idx, None)
        if not self._active:
            return False
        request = self._request(sampling_params, int(self._states.prefill_len.np[req_idx]) - 1, [])
        if request is not None:
            self._requests[req_idx] = request
        return request is not None

    # -- both ----------------------------------------------------------------------------------------------------

    def apply(self, logits: Tensor, context: LogitsContext | None = None) -> Tensor:
        """`[N, V]` logits, in place. The second runner says of which slots and positions the rows are."""
        if not self._requests:
            return logits
        if context is None:
            self._restore(logits)
            rows, progress = self._requests, {row: len(request.said) for row, request in self._requests.items()}
        else:
            slots, positions = context.expanded_idx_mapping.tolist(), context.pos.tolist()
            rows = {row: self._requests[slot] for row, slot in enumerate(slots) if slot in self._requests}
            progress = dict(enumerate(positions))
            self._write(rows, self._shared.model.logits)
        for settings, own in rows_by(rows, _steering):
            self._steer(*settings, rows, own, logits)
        for name, own in rows_by(rows, lambda request: request.settings.guard and [request.settings.guard]):
            self._guard(name, rows, own, progress, logits)
        return logits

    def _request(self, params: SamplingParams, judged: int, said: list[int]) -> Request | None:
        settings = read_settings(params.extra_args, self._kinds, self._vocabulary_size)
        wanted = set(params.logprob_token_ids or ())
        channels = tuple(name for name, token in self._channels.items() if token in wanted)
        if settings.steer is None and settings.guard is None and not channels:
            return None
        return Request(settings, channels, judged, said)

    def _write(self, rows: Rows, logits: Tensor) -> list[tuple[Which, int, Tensor]]:
        """Returns rows, channel and logits of what it wrote over."""
        asked = [(name, which_of(own, logits)) for name, own in rows_by(rows, lambda request: request.channels)]
        kept = []
        for name, which in asked:
            channel = self._channels[name]
            kept.append((which, channel, logits[which, channel].clone()))
            logits[which, channel] = -torch.inf
        for name, which in asked:
            rewards = self._shared.model.signal(name, which).prefix[:, 0]
            logits[which, self._channels[name]] = encode(rewards, logits[which]).to(logits.dtype)
        return kept

    def _restore(self, logits: Tensor) -> None:
        for which, channel, kept in self._kept:
            ruled_out = logits[which, channel] == -torch.inf  # meanwhile, by a grammar
            logits[which, channel] = kept.masked_fill(ruled_out, -torch.inf)
        self._kept = []

    def _steer(self, name: str, top_k: int | None, top_p: float, rows: Rows, own: list[int], logits: Tensor) -> None:
        which = which_of(own, logits)
        scores, signal = logits[which], self._shared.model.signal(name, which)  # [n, V]
        weight = scores.new_tensor([rows[row].settings.weight for row in own])[:, None]
        gather = self._shared.model.gather
        if self._kinds[name] == "contrast":
            logits[which] = contrast(scores, gather(signal.difference()).to(scores), weight, top_p)
            return
        best = None if top_k is None else scores.topk(top_k, dim=-1).indices
        scores.addcmul_(gather(signal.vocabulary()).to(scores), weight)
        if best is not None:
            guided = scores.gather(-1, best)
            scores.fill_(-torch.inf).scatter_(-1, best, guided)
        if isinstance(which, list):  # a copy until here
            logits[which] = scores

    def _guard(self, name: str, rows: Rows, own: list[int], progress: dict[int, int], logits: Tensor) -> None:
        rewards = self._shared.model.signal(name, which_of(own, logits)).prefix[:, 0].tolist()
        for row, reward in zip(own, rewards, strict=True):
            request = rows[row]
            if progress[row] <= request.judged:
                continue
            request.judged = progress[row]
            request.under = request.under + 1 if reward < request.settings.threshold else 0
            if request.under >= request.settings.patience:
                # The request has its guard's channel among the tokens that end it.
                logits[row] = -torch.inf
                logits[row, self._channels[name]] = 0


def rows_by(rows: Rows, keys: Callable[[Request], Iterable[Key] | None]) -> list[tuple[Key, list[int]]]:
    """The rows of the requests that share a key, for each key that a request has."""
    found: dict[Key, list[int]] = {}
    for row, request in sorted(rows.items()):
        for key in keys(request) or ():
            found.setdefault(key, []).append(row)
    return list(found.items())


def which_of(own: list[int], logits: Tensor) -> Which:
    """Some rows of the logits, in ascending order."""
    return slice(None) if len(own) == len(logits) else own


def _steering(request: Request) -> list[tuple[str, int | None, float]]:
    own = request.settings
    return [] if own.steer is None else [(own.steer, own.top_k, own.top_p)]
