"""Splits the blocks of a frozen base over processes, for bases that no device holds (FSDP2, arXiv 2304.11277).

A block is put together where it runs, and split again after it. What is inserted lies whole in every process, as do the
embeddings and the norms. So the logits stay the base's to the bit, and the processes share the gradients of what is
inserted as they do without splitting. They have to run the base equally often, see `otterlm.training.trainer`.
"""

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from otterlm.errors import OtterError, reason
from otterlm.families.parts import blocks_of
from otterlm.model import OtterModel
from otterlm.training.processes import this_process


def shard_base(model: OtterModel) -> OtterModel:
    """Splits the blocks of a model's base over all processes, and moves all else to this process's device.

    Args:
        model: with its base whole, in the main memory.

    Raises:
        OtterError: there is one process only, or the base cannot be split, as one that is quantised.
    """
    state = this_process()
    if state.num_processes < 2:
        raise OtterError("a base is split over several processes, and there is one: start them with torchrun")
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    try:
        for block in blocks_of(model.base_model, model.family):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        raise OtterError(f"the base cannot be split over processes: {reason(error)}") from error
    return model.to(state.device)


def sharded_names(module: nn.Module) -> list[str]:
    """Returns the names of the parameters that are split over processes."""
    return [name for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)]


def leave_to_themselves(module: nn.Module, names: list[str]) -> None:
    """Keeps what is split from being made equal in all processes where gradients are shared."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
