"""A local page to play with: the original and the guided response side by side, and what an adapter says of them."""
