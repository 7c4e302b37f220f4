"""One safetensors file holds all a run needs to go on after a kill -9: weights, best weights, optimizer, position."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.files import write_tensors


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `module` that are being trained, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: dict[str, Any],
) -> None:
    """Saves the state of a run.

    Args:
        path: the file, replaced atomically.
        module: its trainable parameters are saved.
        optimizer: its per-parameter tensors are saved; hyper-parameters are not, they come from the run's settings.
        best: the parameters with the lowest evaluation loss so far.
        progress: everything else, as JSON.
    """
    names = trainable(module)
    tensors = {f"model.{name}": parameter.detach() for name, parameter in names.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in names.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restores what `save_checkpoint` saved.

    Returns:
        The best parameters and the progress.

    Raises:
        OtterError: the file is not a checkpoint of this module.
    """
    names = trainable(module)
    best: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                part, _, rest = key.partition(".")
                tensor = file.get_tensor(key)
                if part == "model":
                    with torch.no_grad():
                        names[rest].copy_(tensor)
                elif part == "best":
                    best[rest] = tensor
                else:
                    slot, _, name = rest.partition(".")
                    optimizer.state[names[name]][slot] = tensor.to(names[name].device) if tensor.dim() else tensor
            progress = json.loads(file.metadata()["progress"])
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise OtterError(f"{path} is not a checkpoint of this run ({error}); delete it to start anew") from error
    return best, progress
