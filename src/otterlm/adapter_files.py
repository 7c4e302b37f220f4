"""Reads and writes adapter folders: `adapter_config.json`, `adapter_model.safetensors`, `README.md`, as PEFT's."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCardData, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from otterlm import files
from otterlm.config import OtterConfig
from otterlm.errors import OtterError, reason
from otterlm.progress import library_bars

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
MAX_CONFIG_BYTES = 1 << 20
LIBRARY = "otter-lm"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""This matches the name of a model on the hub."""


def locate(adapter: str | Path, revision: str | None = None) -> Path:
    """Returns the local folder of an adapter, downloaded if `adapter` is a hub id.

    Args:
        adapter: a folder, or a hub id, which may end with `@REVISION`.
        revision: branch, tag or commit on the hub.

    Raises:
        OtterError: there is no such adapter.
    """
    folder = Path(adapter)
    if folder.is_dir():
        if revision is not None:
            raise OtterError(f"{adapter} is a folder, which has no revision {revision}: leave it out, or name a hub id")
        return folder
    name, _, named = str(adapter).partition("@")
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        raise OtterError(f"{adapter} is not an adapter folder")
    try:
        with library_bars():
            at = revision or named or None
            return Path(snapshot_download(name, revision=at, allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except Exception as error:
        raise OtterError(f"{adapter} is neither a folder nor an adapter on the hub: {reason(error)}") from error


def read_config(folder: Path) -> OtterConfig:
    """Reads and checks `adapter_config.json`.

    Raises:
        OtterError: it is missing or not valid.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise OtterError(f"{path} is larger than any adapter's configuration")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise OtterError(f"{folder} holds no adapter: there is no {CONFIG}. Did its training end?") from error
    except (OSError, UnicodeDecodeError) as error:
        raise OtterError(f"{path} cannot be read: {error}") from error
    return OtterConfig.from_json(text, str(path))


def fill(path: Path, module: nn.Module, vocabulary_size: int, prefix: str = "") -> None:
    """Fills `module` from a safetensors file, converting to its dtype.

    Names, shapes and dtypes are checked against the header before any tensor is read.

    Args:
        path: the file.
        module: its parameters and buffers are filled.
        vocabulary_size: the base's; whole numbers in an adapter are token ids, and must be below it.
        prefix: of the tensors' names; the file's other tensors are another module's.

    Raises:
        OtterError: the file is missing, corrupt, or holds other tensors than the configuration asks for; or a value is
            not finite, or no token.
    """
    expected = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            _check_header(path, file, expected, prefix)
            for name, target in expected.items():
                tensor = file.get_tensor(name)
                if not torch.isfinite(tensor).all():
                    raise OtterError(f"{path}: {name} holds values that are not finite (NaN or infinity)")
                if not target.is_floating_point() and not ((tensor >= 0) & (tensor < vocabulary_size)).all():
                    raise OtterError(f"{path}: {name} holds ids that are no tokens of the base ({vocabulary_size})")
                with torch.no_grad():
                    target.copy_(tensor)
    except OtterError:
        raise
    except FileNotFoundError as error:
        raise OtterError(f"{path}: no such file") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise OtterError(f"{path} is damaged or not a safetensors file: {error}") from error


def rows(path: Path, name: str) -> int | None:
    """Returns how many rows a tensor of a safetensors file has; None where there is no such tensor or file."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice(name).get_shape()[0])
    except (SafetensorError, OSError, IndexError):
        return None


def _check_header(path: Path, file: object, expected: dict[str, Tensor], prefix: str) -> None:
    names = {name for name in file.keys() if name.startswith(prefix)}  # type: ignore[attr-defined]  # noqa: SIM118
    for what, odd in (("lacks", set(expected) - names), ("has unknown", names - set(expected))):
        if odd:
            raise OtterError(f"{path} {what} tensor {min(odd)} ({len(odd)} in all); it does not fit {CONFIG}")
    for name, target in expected.items():
        piece = file.get_slice(name)  # type: ignore[attr-defined]
        if tuple(piece.get_shape()) != tuple(target.shape):
            raise OtterError(f"{path}: {name} has shape {piece.get_shape()}, {CONFIG} asks for {list(target.shape)}")
        allowed = ("F32", "F16", "BF16") if target.is_floating_point() else ("I64",)
        if piece.get_dtype() not in allowed:
            raise OtterError(f"{path}: {name} is {piece.get_dtype()}; expected {' or '.join(allowed)}")


def write(
    folder: Path,
    config: OtterConfig,
    tensors: dict[str, Tensor],
    card: str | None,
    dtype: torch.dtype | None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter folder. `metadata` is more of the card's, see `front_matter`.

    Raises:
        OtterError: it cannot be written (what was there before stays), it holds a model, or `dtype` is none that can be
            read back.
    """
    if (folder / "config.json").exists():
        raise OtterError(f"{folder} holds a model, which could not be loaded beside an adapter: choose another folder")
    if dtype not in (None, torch.float32, torch.float16, torch.bfloat16):
        raise OtterError(f"adapters are saved as float32, float16 or bfloat16, not {dtype}")
    front = front_matter(config, metadata or {})
    converted = {name: tensor.detach().to("cpu", _saved_as(tensor, dtype)) for name, tensor in tensors.items()}
    files.write_files(
        folder,
        {
            WEIGHTS: files.tensors(converted, _described(config)),
            CONFIG: files.text(config.to_json()),
            CARD: files.text(front + (card or "# An Otter adapter\n\nSee https://pypi.org/project/otter-lm.\n")),
        },
    )


def front_matter(config: OtterConfig, metadata: Mapping[str, Any]) -> str:
    """Returns the first lines of a card, from which the hub knows what it shows.

    Args:
        config: says what is predicted, and of which base. A base in a folder is nothing that the hub knows.
        metadata: more, such as `license`, `datasets` and `metrics`, see `huggingface_hub.ModelCardData`.
    """
    base = config.base_model_name_or_path or ""
    known = HUB_ID.fullmatch(base) and not Path(base).exists()
    data: dict[str, Any] = {"library_name": LIBRARY, "tags": ["otter", config.signal.type, "arxiv:2408.10764"]}
    data |= {"base_model": base, "base_model_relation": "adapter"} if known else {}
    return f"---\n{ModelCardData(**data | dict(metadata)).to_yaml()}\n---\n\n"


def _described(config: OtterConfig) -> dict[str, str]:
    """Returns the metadata of the safetensors file."""
    base = (config.base_model_name_or_path or "").encode(errors="backslashreplace").decode()
    described = {"format": "pt", "library_name": LIBRARY, "signal": config.signal.type, "version": str(config.version)}
    return described | ({"base_model": base} if base else {})


def _saved_as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if not tensor.is_floating_point():
        return tensor.dtype
    return dtype or (torch.float32 if tensor.dtype == torch.float64 else tensor.dtype)


def upload(folder: str, repo_id: str, private: bool | None = None, token: Any = None, **kwargs: Any) -> Any:
    """Uploads an adapter folder, and returns what `HfApi.upload_folder` returns.

    Raises:
        OtterError: it cannot be uploaded.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=url.repo_id, folder_path=folder, **kwargs)
    except Exception as error:
        raise OtterError(f"the adapter could not be uploaded to {repo_id}: {reason(error)}") from error
