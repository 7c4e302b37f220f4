"""Recognises a decoder from outside its blocks, by watching a small one run."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from otterlm.causal import decoder_of
from otterlm.detection.trial import Trial, ids_for
from otterlm.errors import OtterError, reason
from otterlm.families import Outline
from otterlm.families.points import EDGE
from otterlm.replica import replica

MEMORIES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Models have one of these names for what they remember of a text."""


def outline_of(base: PreTrainedModel, config: Any, why: str) -> Outline:
    """Returns what is known of a base from outside its blocks.

    Args:
        base: of its parameters only the shapes are read.
        config: its decoder's.
        why: its blocks are not known inside.

    Raises:
        OtterError: a stream cannot read it, or would say something wrong.
    """
    nor = f"{why}; nor can its blocks be read at their edge"
    try:
        small = replica(base)
        outline = replace(_watched(small, config.model_type), why=why)
        trial = Trial(small, outline)
        trial.check()
        return replace(outline, branches=trial.branches(), **trial.logits())
    except OtterError as error:
        raise OtterError(f"{nor}: {error}") from None
    except Exception as error:  # the base's code may fail in any way
        raise OtterError(f"{nor}: {reason(error)}") from error


@dataclass(frozen=True, slots=True)
class _Call:
    """The call holds what one part of a decoder took and gave, both floating."""

    path: str
    taken: Tensor
    output: Tensor


@torch.no_grad()
def _watched(model: Any, kind: str) -> Outline:
    """Returns the outline that a pass shows."""
    decoder, calls, embedded = decoder_of(model), [], []
    embedding = model.get_input_embeddings()

    def keep(path: str, inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if isinstance(output, tuple | list) and output:
            output = output[0]
        taken = EDGE[0].of_inputs(inputs, kwargs)
        if all(isinstance(state, Tensor) and state.is_floating_point() for state in (taken, output)):
            calls.append(_Call(path, taken.clone(), output.clone()))

    handles = [embedding.register_forward_pre_hook(lambda _, inputs: embedded.append(inputs[0]))]
    for path, part in decoder.named_modules():
        if path:
            hook = lambda _, inputs, kwargs, output, path=path: keep(path, inputs, kwargs, output)  # noqa: E731
            handles.append(part.register_forward_hook(hook, with_kwargs=True))
    ids = ids_for(model)
    last = decoder(input_ids=ids, use_cache=False)[0]
    for handle in handles:
        handle.remove()
    names = [path for path, part in decoder.named_modules() if part is embedding]
    if not names or len(embedded) != 1 or embedded[0].shape != ids.shape:
        raise OtterError("its decoder does not embed each token once")
    width = model.config.get_text_config(decoder=True).hidden_size
    if last.shape != (*ids.shape, width):
        raise OtterError(f"its last state is {list(last.shape)}, not {[*ids.shape, width]}")
    layers = _layers(decoder, calls)
    depth = len(decoder.get_submodule(layers))
    shape = next(call.taken.shape for call in calls if call.path == f"{layers}.0")
    return Outline(
        model_types=(kind,),
        layers=layers,
        embedding=names[0],
        final_norm=_final_norm(calls, last, layers, depth),
        streams=_streams(shape, last.shape),
        cache_layers=max(1, -(-_cached(decoder, ids) // depth)),
    )


def _cached(decoder: Any, ids: Tensor) -> int:
    """Counts the layers of the decoder's cache; 0 where it has none."""
    output = decoder(input_ids=ids, use_cache=True)
    memory = next((value for name in MEMORIES if (value := getattr(output, name, None)) is not None), None)
    if memory is None:
        return 0
    if not isinstance(memory, Cache):
        raise OtterError("it remembers a text without a cache, which extra heads need for their keys")
    return len(memory.self_attention_cache.layers if isinstance(memory, EncoderDecoderCache) else memory.layers)


def _layers(decoder: nn.Module, calls: list[_Call]) -> str:
    """Returns the largest list whose parts run once each, in order, each on the state that the one before it gave."""
    lists: list[tuple[int, str]] = []
    for path, part in decoder.named_modules():
        if isinstance(part, nn.ModuleList) and len(part):
            blocks = [f"{path}.{index}" for index in range(len(part))]
            theirs = [call for call in calls if call.path in set(blocks)]
            if [call.path for call in theirs] == blocks and _follow(theirs):
                lists.append((sum(parameter.numel() for parameter in part.parameters()), path))
    if not lists:
        raise OtterError("it has no list of blocks that run once, each on the state of the one before")
    return max(lists)[-1]


def _follow(calls: list[_Call]) -> bool:
    pairs = itertools.pairwise(calls)
    return calls[0].taken.shape == calls[0].output.shape and all(torch.equal(a.output, b.taken) for a, b in pairs)


def _streams(shape: torch.Size, last: torch.Size) -> int | None:
    """Returns the axis of a block's state that counts several states side by side."""
    if shape == last:
        return None
    for axis in (2, 0, 1):
        if len(shape) == len(last) + 1 and shape[:axis] + shape[axis + 1 :] == last:
            return axis
    raise OtterError(f"its blocks carry states of {list(shape)}, not {list(last)}")


def _final_norm(calls: list[_Call], last: Tensor, layers: str, depth: int) -> str | None:
    """Returns the part that gives the decoder's last state; None where the last block does."""
    for call in reversed(calls):
        if call.path.startswith(f"{layers}.") or call.output.shape != last.shape or not torch.equal(call.output, last):
            continue
        if call.taken.shape == last.shape and not torch.equal(call.taken, last):
            return call.path
    block = next(call for call in calls if call.path == f"{layers}.{depth - 1}")
    if block.output.shape == last.shape and torch.equal(block.output, last):
        return None
    raise OtterError("its last state comes neither from a norm nor from its last block")
