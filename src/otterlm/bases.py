"""Loads a base by its name: a hub id, a folder, a .gguf file, or `smollm2-135m`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from otterlm import smollm2
from otterlm.errors import OtterError, reason
from otterlm.families.facts import context_length
from otterlm.progress import library_bars
from otterlm.smollm2 import SMOLLM2


def load_base(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads a causal language model in evaluation mode.

    Args:
        name: a hub id, a folder, a `.gguf` file, or `smollm2-135m`.
        dtype: of its parameters.

    Raises:
        OtterError: there is no such model, it cannot be loaded, or lacks weights or holds some that are not finite.
    """
    model, loading = _load(AutoModelForCausalLM, name, dtype=dtype, output_loading_info=True)
    _check_weights(name, model, loading["missing_keys"])
    model.config._name_or_path = name
    return model.eval()


def _check_weights(name: str, model: PreTrainedModel, missing: Collection[str]) -> None:
    """Checks that a model has all its weights. Transformers makes up those that a folder lacks, and only warns."""
    if missing:
        raise OtterError(f"the base {name} lacks weights, such as {min(missing)} ({len(missing)} in all)")
    for path, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise OtterError(f"the base {name} holds values that are not finite (NaN or infinity), in {path}")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a base, which pads on the left. Arguments and errors are those of `load_base`."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, name)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str) -> PretrainedConfig:
    """Loads the configuration of a base. Arguments and errors are those of `load_base`."""
    return _load(AutoConfig, name)


def base_folder(name: str) -> Path:
    """Returns the local folder of a base's files. A hub id is downloaded.

    Raises:
        OtterError: there is no such model, or it is a `.gguf` file.
    """
    if name == SMOLLM2:
        return smollm2.checkpoint()
    if Path(name).is_dir():
        return Path(name)
    if Path(name).suffix == ".gguf":
        raise OtterError(f"{name} is not a folder of a model: load it and save it with save_pretrained first")
    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        with library_bars():
            return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise OtterError(f"{name} is neither a folder nor a model on the hub: {reason(error)}") from error


def check_context(config: PretrainedConfig, tokens: int) -> None:
    """Checks that a text fits a base's context.

    Args:
        config: the base's.
        tokens: the length of the text.

    Raises:
        OtterError: it does not.
    """
    longest = context_length(config)
    if longest is not None and tokens > longest:
        raise OtterError(f"a text of {tokens} tokens exceeds the base's context of {longest}: shorten or cut it")


def _load(auto: Any, name: str, **kwargs: Any) -> Any:
    if name == SMOLLM2:
        name = str(smollm2.checkpoint())
    path, folder = Path(name), name
    if path.suffix == ".gguf":
        if not path.is_file():
            raise OtterError(f"{name}: no such file")
        folder, kwargs["gguf_file"] = str(path.parent), path.name
    elif not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise OtterError(f"{name}: no such folder")
    try:
        with library_bars():
            return auto.from_pretrained(folder, trust_remote_code=False, **kwargs)
    except Exception as error:
        if path.is_dir() and not (path / "config.json").exists():
            raise OtterError(f"the base {name} cannot be loaded: the folder holds no config.json of a model") from error
        raise OtterError(f"the base {name} cannot be loaded: {reason(error)}") from error


def parse_dtype(name: str, option: str = "--dtype") -> torch.dtype:
    """Returns a floating dtype by its name.

    Raises:
        OtterError: it is none of the three.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise OtterError(f"{option} must be one of {', '.join(dtypes)}, got {name!r}")
    return dtypes[name]
