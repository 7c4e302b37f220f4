"""Damages adapter folders in every way it can think of: python tests/fuzz.py COUNT [SEED].

Each input is loaded onto a tiny base. It must load, or be refused by an OtterError of one line; nothing else may
happen, and nothing may be unpickled. An input that does anything else is kept in tests/corpus, and every later run
tries it first.
"""

import copy
import json
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from conftest import tiny_base, tiny_otter

from otterlm.adapter_files import CONFIG, WEIGHTS
from otterlm.errors import OtterError
from otterlm.model import OtterModel
from otterlm.signals.contrast.config import ContrastConfig
from otterlm.signals.draft.config import DraftConfig
from otterlm.signals.reward.config import RewardConfig

CORPUS = Path(__file__).parent / "corpus"
SIGNALS = (RewardConfig(4), ContrastConfig(3), DraftConfig(2, 8, 4, 20, accuracy=((0.5, 0.2), (0.1,))))
SLOWEST = 5.0
"""Seconds one input may take."""
LARGEST = 200
"""MiB by which one input may raise the most memory the process has used."""

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1 << 31, 1 << 63, 1 << 400, 0.5, -0.0, float("nan"), float("inf"), 1e308),
    *(
        "",
        "x",
        "../../etc/passwd",
        "/dev/zero",
        "a\x00b",
        "\ud800",
        "\U0001d518" * 9,
        "copy",
        "reward",
        "draft",
        "contrast",
        "OTTER",
    ),
    *([], [0], [[0]], [-1], [0, 0], [3, 1], ["0"], [1 << 70], {}, {"a": 1}, [None] * 1000, list(range(500))),
)


def seeds() -> list[tuple[bytes, bytes]]:
    """Returns whole adapters, one of each signal: config and weights."""
    results = []
    for signal in SIGNALS:
        with tempfile.TemporaryDirectory() as folder:
            tiny_otter(tiny_base(), signal=signal, layers=(0, 2)).save_pretrained(folder)
            results.append(((Path(folder) / CONFIG).read_bytes(), (Path(folder) / WEIGHTS).read_bytes()))
    return results


def bytes_somewhere(data: bytes, draw: random.Random) -> bytes:
    """Flips, cuts, doubles or fills a piece of a file, or puts a nest of brackets in its place."""
    if not data:
        return b"{}"
    start = draw.randrange(len(data))
    length = min(len(data) - start, draw.choice((1, 1, 2, 8, 64, 4096)))
    kind = draw.randrange(7)
    piece = {
        0: bytes(draw.randrange(256) for _ in range(length)),
        1: b"",
        2: data[start : start + length] * 2,
        3: b"\xff" * length,
        4: b"\x00" * length,
        5: data[start : start + length][::-1],
        6: b"[" * 100_000,
    }[kind]
    return data[:start] + piece + data[start + length :]


def truncated(data: bytes, draw: random.Random) -> bytes:
    """Returns the start of a file."""
    return data[: draw.randrange(len(data) + 1)]


def _odd(draw: random.Random) -> Any:
    # A copy: what is put into a value may be changed there, and must not grow into itself.
    return copy.deepcopy(draw.choice(ODD))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in inner for deeper in _paths(item, (*path, key)))]


def _changed(value: Any, draw: random.Random) -> Any:
    """Returns a JSON value with something in it replaced, removed, added or renamed."""
    paths = [path for path in _paths(value) if path]
    if not paths:
        return _odd(draw)
    path = draw.choice(paths)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    kind = draw.randrange(4)
    if kind == 0:
        del holder[path[-1]]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(("x", "../y", "stream.final_norm.weight", "head.extra", ""))] = _odd(draw)
    elif kind == 2 and isinstance(holder, dict):
        holder[draw.choice(("renamed", "a/../../b", "vocabulary"))] = holder.pop(path[-1])
    else:
        holder[path[-1]] = _odd(draw)
    return value


def config_changed(config: bytes, draw: random.Random) -> bytes:
    """Returns a configuration with other values in it."""
    try:
        values = json.loads(config)
    except (ValueError, RecursionError):
        return bytes_somewhere(config, draw)
    for _ in range(draw.choice((1, 1, 2, 4))):
        values = _changed(values, draw)
    return json.dumps(values, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def header_changed(weights: bytes, draw: random.Random) -> bytes:
    """Returns a safetensors file with another header: other names, shapes, dtypes, offsets, or length."""
    try:
        length = struct.unpack("<Q", weights[:8])[0]
        header, body = json.loads(weights[8 : 8 + length]), weights[8 + length :]
    except (struct.error, ValueError, RecursionError):
        return bytes_somewhere(weights, draw)
    if draw.random() < 0.15:
        return struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 1 << 40, (1 << 64) - 1))) + weights[8:]
    for _ in range(draw.choice((1, 1, 2, 4))):
        if draw.random() < 0.4 and isinstance(header, dict) and header:
            entry = header[draw.choice(list(header))]
            if isinstance(entry, dict):
                kind = draw.choice(("dtype", "shape", "data_offsets"))
                entry[kind] = draw.choice(
                    ("F64", "I64", "BOOL", "F8_E4M3", "BF16", "nonsense")
                    if kind == "dtype"
                    else ([1 << 50], [1 << 32, 1 << 32], [-1], [8, 0], [], [0, 1 << 60], [5, 2], [0, 1])
                )
        else:
            header = _changed(header, draw)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def values_changed(weights: bytes, draw: random.Random) -> bytes:
    """Returns a safetensors file with odd numbers in its body."""
    start = len(weights) - 4 * draw.randrange(1, 200)
    odd = struct.pack("<f", draw.choice((float("nan"), float("inf"), -float("inf"), 1e38, 0.0)))
    return weights[:start] + odd + weights[start + 4 :]


MUTATIONS: tuple[tuple[str, Callable[[bytes, random.Random], bytes]], ...] = (
    (CONFIG, config_changed),
    (CONFIG, config_changed),
    (CONFIG, bytes_somewhere),
    (CONFIG, truncated),
    (WEIGHTS, header_changed),
    (WEIGHTS, header_changed),
    (WEIGHTS, bytes_somewhere),
    (WEIGHTS, truncated),
    (WEIGHTS, values_changed),
)


class Unpickled(BaseException):
    """Is raised where something was unpickled."""


def outcome(files: dict[str, bytes], base: Any, folder: Path) -> str:
    """Loads one input: `loaded`, `refused`, or what went wrong."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    started, memory = time.perf_counter(), _most_memory()
    try:
        model = OtterModel.from_pretrained(base, folder)
        with torch.no_grad():
            model(torch.tensor([[3, 4, 5]]))
        result = "loaded"
    except OtterError as error:
        result = "refused" if "\n" not in str(error) else f"an error of several lines: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result = f"{type(error).__name__}: {error}"
    seconds, memory = time.perf_counter() - started, _most_memory() - memory
    if seconds > SLOWEST or memory > LARGEST:
        return f"took {seconds:.1f} s and {memory} MiB"
    return result


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _refuse_pickles(*_: Any, **__: Any) -> Any:
    raise Unpickled


def run(count: int, seed: int = 0, keep: bool = True) -> Counter[str]:
    """Tries the corpus, then `count` new inputs; returns how often each outcome came."""
    pickle.loads = pickle.load = pickle.Unpickler = _refuse_pickles  # type: ignore[assignment, misc]
    draw, base, outcomes = random.Random(seed), tiny_base(), Counter[str]()
    whole = seeds()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case in sorted(path for path in CORPUS.iterdir() if path.is_dir()) if CORPUS.exists() else ():
            outcomes[outcome({name: (case / name).read_bytes() for name in (CONFIG, WEIGHTS)}, base, folder)] += 1
        for _ in range(count):
            config, weights = draw.choice(whole)
            files = {CONFIG: config, WEIGHTS: weights}
            for _ in range(draw.choice((1, 1, 1, 2, 3))):
                name, mutate = draw.choice(MUTATIONS)
                files[name] = mutate(files[name], draw)
            result = outcome(files, base, folder)
            outcomes[result] += 1
            if result not in ("loaded", "refused") and keep:
                shutil.copytree(folder, CORPUS / f"{seed}-{sum(outcomes.values())}", dirs_exist_ok=True)
    return outcomes


if __name__ == "__main__":
    for name, times in run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(times, name)
