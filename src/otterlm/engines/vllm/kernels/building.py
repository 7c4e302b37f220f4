"""Builds the C++ operators on the machine that serves, with the compiler that is there, once for a processor."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from otterlm import files
from otterlm.engines.vllm.events import logger
from otterlm.errors import OtterError
from otterlm.smollm2 import cache_folder

SWITCH = "OTTER_KERNELS"
"""The environment variable that turns the operators off: 0."""
SOURCES = [Path(__file__).with_name(name) for name in ("block.cpp", "candidates.cpp")]
HEADER = Path(__file__).with_name("products.h")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
SECONDS = 300


@functools.cache
def library() -> ctypes.CDLL | None:
    """Returns the built operators.

    They are built at first use, into the user's cache. The file's name has a digest of the sources, of the compiler and
    of what the processor can do. They need nothing of PyTorch, so the file stays when PyTorch changes.

    Returns:
        None where they are turned off or cannot be built. Then the log says so in one line.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return ctypes.CDLL(str(_built(os.environ.get("CXX", "c++"))))
    except (OtterError, OSError) as error:
        logger.warning("widened blocks and guidance run as PyTorch's operators, which is slower: %s", error)
        return None


def _built(compiler: str) -> Path:
    if shutil.which(compiler) is None:
        raise OtterError(f"there is no C++ compiler {compiler!r}: install g++, or name one with CXX")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    sources = [each.read_bytes() for each in (*SOURCES, HEADER)]
    parts = [*sources, " ".join(FLAGS).encode(), version, _processor().encode()]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    path = cache_folder() / "kernels" / f"operators-{digest[:16]}.so"
    if not path.exists():
        files.write_files(path.parent, {path.name: functools.partial(_compile, compiler)})
    return path


def _compile(compiler: str, path: Path) -> None:
    command = [compiler, *FLAGS, "-o", str(path), *map(str, SOURCES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OtterError(f"{compiler} took longer than {SECONDS} seconds") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it failed"]
        raise OtterError(f"{compiler}: {lines[0]}")


def _processor() -> str:
    """Returns what the processor can do: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
