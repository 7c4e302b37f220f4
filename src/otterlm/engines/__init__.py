"""Runs the same adapters inside engines: a folder holds base and adapters, and an engine loads it as one model."""
