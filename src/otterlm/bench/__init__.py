"""Compares Otter and its rivals in one harness, on the same base and in the same run: space, time and quality."""
