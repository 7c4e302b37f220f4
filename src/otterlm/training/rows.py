"""Is the former module of `otterlm.training.data.rows`, for scripts of 0.1."""

from otterlm.training.data.rows import PairRow, ScoredRow, hold_out, read_rows

__all__ = ["PairRow", "ScoredRow", "hold_out", "read_rows"]
