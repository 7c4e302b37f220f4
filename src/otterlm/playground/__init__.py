"""The playground is a local page: it shows the original and the guided response side by side, and what an
adapter says of them."""
