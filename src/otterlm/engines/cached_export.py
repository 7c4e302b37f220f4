"""Exports a base and its adapters into the user's cache folder, once for the same files.

A folder that nobody has used for a month is removed when the next one is used.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import otterlm
from otterlm import adapter_files, files
from otterlm.bases import base_folder
from otterlm.engines.exported import export
from otterlm.errors import OtterError
from otterlm.identity import of_data
from otterlm.smollm2 import cache_folder

DIGITS = 12
"""So much of its digest is in a folder's name."""
UNUSED_DAYS = 30
"""A folder stays so long after its last use."""


def cached_export(base: str, adapters: Mapping[str, str | Path]) -> Path:
    """Returns an exported folder in the user's cache, see `otterlm.engines.exported.export`.

    It is made anew when a file of the base or an adapter has changed. The base's files are links. The folder is in use
    until this process ends, also if it becomes another program. Folders that were not used for 30 days are removed.

    Raises:
        OtterError: as for `export`, or another process is making the same folder.
    """
    folders = {name: adapter_files.locate(adapter) for name, adapter in adapters.items()}
    target = cache_folder() / "served" / f"{short_name(base)}-{_digest(base_folder(base), folders)}"
    with files.hold(target):
        if not target.is_dir():
            unfinished = _unfinished(target)
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
            export(base, folders, unfinished)
            try:
                unfinished.rename(target)
            except OSError as error:
                raise OtterError(f"{target} could not be written: {error.strerror or error}") from error
        _use(target)
    _remove_unused(target.parent)
    return target


def _unfinished(folder: Path) -> Path:
    """Returns where a folder is made and taken apart, so that it is whole or not there."""
    return folder.with_name(f".{folder.name}{files.UNFINISHED}")


def _use(folder: Path) -> None:
    """Marks a folder as used now, and until this process ends."""
    handle = os.open(folder, os.O_RDONLY)  # never closed
    os.set_inheritable(handle, True)  # the program that this process becomes has the lock, too
    fcntl.flock(handle, fcntl.LOCK_SH)
    os.utime(handle)


def _remove_unused(served: Path) -> None:
    """Removes the folders that were not used for long and that no process uses. What cannot be removed stays."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for folder in served.glob("[!.]*"):
        with suppress(OSError, OtterError):
            if folder.stat().st_mtime < oldest:
                with files.hold(folder):
                    _remove(folder)


def _remove(folder: Path) -> None:
    """Removes a folder; raises `BlockingIOError` if a process uses it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(_unfinished(folder), ignore_errors=True)  # of a run that was killed
        shutil.rmtree(folder.rename(_unfinished(folder)))
    finally:
        os.close(handle)


def short_name(base: str) -> str:
    """Returns the last part of a base's name, which may be a path or a hub id."""
    return Path(base).resolve().name if Path(base).exists() else base.rpartition("/")[2]


def _digest(base: Path, adapters: Mapping[str, Path]) -> str:
    """Returns a digest of the base's files, by their names, sizes and times, and of what is in the adapters'."""
    stats = [(path.name, path.stat()) for path in sorted(base.iterdir()) if path.is_file()]
    parts = [
        otterlm.__version__,
        str(base.resolve()),
        [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        [(name, *map(_hash, _files(folder))) for name, folder in adapters.items()],
    ]
    digest: str = of_data(parts)["sha256"]
    return digest[:DIGITS]


def _files(adapter: Path) -> tuple[Path, Path]:
    return adapter / adapter_files.CONFIG, adapter / adapter_files.WEIGHTS


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OtterError(f"{path} cannot be read: {error.strerror or error}") from error
