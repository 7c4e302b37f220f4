"""Files are written whole or not at all: beside their targets first, and moved over them together."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from otterlm.errors import OtterError

Writer = Callable[[Path], None]
"""A writer takes a path and writes its file there."""

UNFINISHED = ".unfinished"
"""The names of files end so while they are written."""


def write_files(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Writes files of one folder together. If one cannot be written, all stay as they were.

    Args:
        folder: created if need be.
        writers: by file name.

    Raises:
        OtterError: a file cannot be written.
    """
    name, written = "", {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=UNFINISHED)
            os.close(handle)
            written[name] = Path(temporary)
            write(written[name])
            with written[name].open("rb") as file:
                os.fsync(file.fileno())
            written[name].chmod(0o644)
        with _locked(folder):
            for name, path in written.items():
                path.replace(folder / name)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OtterError(f"{folder / name} could not be written: {reason}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


@contextmanager
def temporary_file(what: str) -> Iterator[IO[bytes]]:
    """Opens a file without a name in the temporary folder, which is gone when nothing reads it any more.

    Args:
        what: is written there, for the error.

    Raises:
        OtterError: it cannot be made or written.
    """
    with temporary_writes(what), tempfile.TemporaryFile() as file:
        yield file


@contextmanager
def temporary_writes(what: str) -> Iterator[None]:
    """Says in one line that the temporary folder cannot be written into.

    Args:
        what: is written there.

    Raises:
        OtterError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        line = f"{what} could not be written into {folder}: {error.strerror or error}; TMPDIR names another folder"
        raise OtterError(line) from error


def make_folder(folder: Path) -> None:
    """Makes a folder that files can be written into, before work is done for them.

    Raises:
        OtterError: it cannot be made or written, or its name is not UTF-8, as libraries that write there need it.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise OtterError(f"{folder} cannot be written into: its name is not UTF-8") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror or error
        raise OtterError(f"{folder} cannot be written into: {reason}") from error


def remove_unfinished(folder: Path) -> None:
    """Removes what writers left that were killed; for a folder that has no other writer now."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other writers of a folder out, so that its files are of one of them. The lock goes with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keeps other processes from making the same file meanwhile. The hold ends with the process, however it ends.

    Args:
        path: of the file, or of the last of several that are made together; its folder is created if need be.

    Raises:
        OtterError: another process makes it, or its folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(lock)
    except BlockingIOError as error:
        raise OtterError(f"another process is writing {path}: wait until it ends, or choose another folder") from error
    except OSError as error:
        raise OtterError(f"{path} could not be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    """Opens and locks a file; the file's last holder removes it, so what was locked may be no longer there."""
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def text(content: str) -> Writer:
    """Makes a writer of a text file. What UTF-8 cannot hold, such as a path of other bytes, is written as an escape."""

    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8", errors="backslashreplace")

    return write


def tensors(content: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Writer:
    """Makes a writer of a safetensors file."""

    def write(path: Path) -> None:
        contiguous = {name: tensor.contiguous() for name, tensor in content.items()}
        save_file(contiguous, path, metadata=dict(metadata))
        if len(metadata) > 1:
            _sort_metadata(path)

    return write


def _sort_metadata(path: Path) -> None:
    """Writes the metadata of a safetensors file in order, so that the same content makes the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= size:  # as it is the same content, written alike
            file.seek(8)
            file.write(content.ljust(size))


def write_text(path: Path, content: str) -> None:
    """Writes one text file, or into a device or pipe, which must not be replaced by a file.

    Raises:
        OtterError: as for `write_files`.
    """
    if not _is_stream(path):
        write_files(path.parent, {path.name: text(content)})
        return
    try:
        text(content)(path)
    except OSError as error:
        raise OtterError(f"{path} could not be written: {error.strerror or error}") from error


def _is_stream(path: Path) -> bool:
    """Returns whether a path is a device, a pipe, or a name of an open file such as `/dev/stdout`."""
    folder = path.parent.resolve()
    open_file = folder == Path("/dev") or Path("/proc") in folder.parents
    return open_file or path.is_char_device() or path.is_fifo() or path.is_socket()


def write_tensors(path: Path, content: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file.

    Raises:
        OtterError: as for `write_files`.
    """
    write_files(path.parent, {path.name: tensors(content, metadata)})


def whole_lines(text: str) -> str:
    """Returns the text of a file that grows line by line, without a last line that was torn by a kill."""
    return text[: text.rfind("\n") + 1]
