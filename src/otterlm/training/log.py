"""Logs a training run, step by step."""

import json
from pathlib import Path

from otterlm.errors import OtterError
from otterlm.files import remove_unfinished, write_text


class Log:
    """Writes metrics as JSON lines, `metrics.jsonl`, and for TensorBoard, `tensorboard/`.

    Args:
        out: the folder of both.
        step: of the checkpoint that the run resumes from; later metrics are removed, and will be logged again.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        remove_unfinished(out)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        earlier = [line for line in lines if 0 < _step_of(line) <= step]
        write_text(path, "".join(f"{line}\n" for line in earlier))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, phase: str, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step; `phase` is `train` or `eval`.

        Raises:
            OtterError: they cannot be written.
        """
        try:
            self._file.write(json.dumps({"phase": phase, "step": step, **metrics}) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._board.add_scalar(f"{phase}/{name}", value, step)
        except OSError as error:
            raise OtterError(f"{self._file.name} could not be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Closes the files. No more metrics can be added."""
        self._file.close()
        self._board.close()


def _step_of(line: str) -> int:
    """Returns the step of a line of a log; 0 for a line that was torn by a kill."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
