"""Saves all a run needs to resume after a kill -9: weights, best weights, optimizer, position, in one file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from otterlm.errors import OtterError
from otterlm.files import write_tensors
from otterlm.identity import Identity, check

CHECKPOINT = "checkpoint.safetensors"
PROGRESS = {"step", "best", "stale", "finished"}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of `module` that are being trained, by name."""
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
        optimizer: its per-parameter tensors are saved; hyper-parameters are not: they come from the run's settings.
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


def check_checkpoint(path: Path, wanted: Identity, partial: bool = False) -> None:
    """Checks that a checkpoint, if there is one, is of this run, with the arguments of `otterlm.identity.check`."""
    if path.exists():
        with _opened(path) as file:
            check(path, _progress(file)["identity"], wanted, partial)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, wanted: Identity
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restores what `save_checkpoint` saved. Nothing is changed before the whole file has been checked.

    Args:
        path: the file.
        module, optimizer: get the saved state.
        wanted: the identity of the run that resumes, as `identity` in its progress.

    Returns:
        The best parameters and the rest of the progress.

    Raises:
        OtterError: the file is damaged, or belongs to a run with another identity.
    """
    names = trainable(module)
    with _opened(path) as file:
        progress = _progress(file)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    check(path, progress.pop("identity"), wanted)
    slots = ("step", "exp_avg", "exp_avg_sq") if progress.get("step") else ()
    expected = {f"{part}.{name}" for name in names for part in ("model", "best", *(f"optimizer.{s}" for s in slots))}
    if expected != set(tensors):
        raise _damaged(path, f"it lacks or has unknown tensors, such as {min(expected ^ set(tensors))}")
    for name, parameter in names.items():
        if {tensors[f"{part}.{name}"].shape for part in ("model", "best")} != {parameter.shape}:
            raise _damaged(path, f"{name} has another shape")
    for name, parameter in names.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"model.{name}"])
        for slot in slots:
            value = tensors[f"optimizer.{slot}.{name}"]
            optimizer.state[parameter][slot] = value.to(parameter.device) if value.dim() else value
    return {name: tensors[f"best.{name}"].to(parameter.device) for name, parameter in names.items()}, progress


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, json.JSONDecodeError, TypeError, AttributeError, OSError) as error:
        raise _damaged(path, error) from error


def _progress(file: Any) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads(file.metadata()["progress"])
    if set(progress) != {*PROGRESS, "identity"} or not isinstance(progress["identity"], dict):
        raise KeyError("identity")
    return progress


def _damaged(path: Path, reason: object) -> OtterError:
    return OtterError(f"{path} is not a checkpoint of this run ({reason}); delete it to start anew")
