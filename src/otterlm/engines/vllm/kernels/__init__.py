"""Contains CPU operators: a widened block in two calls instead of some sixty of PyTorch's, and guidance in one pass."""
