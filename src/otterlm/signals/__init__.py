"""What is read from the widened state [h, h']: one file a signal."""
