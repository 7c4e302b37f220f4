"""Reads files and hub datasets and makes packed batches of tokens of them."""
