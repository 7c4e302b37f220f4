"""Replaces the weights of an adapter in a worker's model while the engine runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from otterlm import adapter_files
from otterlm.config import OtterConfig
from otterlm.engines.requests import Served
from otterlm.engines.vllm.kernels.block import PackedBlock
from otterlm.engines.vllm.upstream.names import VllmConfig
from otterlm.engines.vllm.widening import PackedLinear, shard_and_pack


class Replacement:
    """Replaces adapters in two steps, so that either all workers of an engine do, or none.

    Args:
        model: the widened one.
        vllm_config: the engine's.
        make: makes an adapter of this model, without weights.
    """

    def __init__(self, model: Any, vllm_config: VllmConfig, make: Callable[[OtterConfig], Any]) -> None:
        self._model = model
        self._vllm_config = vllm_config
        self._make = make
        self._waiting: Any = None

    def prepare(self, slot: str, folder: Path) -> None:
        """Reads an adapter and makes its weights ready for this process. Nothing changes yet.

        Args:
            slot: the adapter that is to be replaced.
            folder: of the new one.

        Raises:
            OtterError: it cannot be read.
        """
        with torch.device(next(iter(self._model.otter[slot].head.parameters())).device):
            fresh = self._make(adapter_files.read_config(folder))
        adapter_files.fill(folder / adapter_files.WEIGHTS, fresh, self._vllm_config.model_config.hf_config.vocab_size)
        shard_and_pack(fresh.stream, self._model.fused)
        self._waiting = fresh

    def commit(self, slot: str, name: str, served: Served) -> None:
        """Takes over the weights that were prepared.

        Args:
            slot: the adapter that is replaced.
            name: of the new one.
            served: what requests are checked against from now on.
        """
        fresh, self._waiting = self._waiting, None
        live = self._model.otter[slot]
        live.config, live.head = fresh.config, fresh.head
        _take_over(live.stream, fresh.stream)
        # The order stays: it is that of the model's channels.
        adapters = {(name if each == slot else each): module for each, module in self._model.otter.items()}
        self._model.otter.clear()
        self._model.otter.update(adapters)
        self._model.watcher.serve(served)
        self._model.warm()


@torch.no_grad()
def _take_over(live: nn.Module, fresh: nn.Module) -> None:
    """Copies weights into the tensors that are there, which compiled graphs know. Packed ones are exchanged."""
    for name, child in fresh.named_children():
        if isinstance(child, (PackedLinear, PackedBlock)):
            setattr(live, name, child)
        else:
            _take_over(getattr(live, name), child)
    for name, tensor in (*fresh.named_parameters(recurse=False), *fresh.named_buffers(recurse=False)):
        getattr(live, name).copy_(tensor)
