"""Measures how well an adapter scores held-out rows, and what its rewards mean."""
