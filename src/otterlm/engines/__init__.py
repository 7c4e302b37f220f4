"""The same adapters inside engines: a folder that an engine loads as one model."""
