"""One harness for Otter and its rivals: the same base, the same run, space and time and quality side by side."""
