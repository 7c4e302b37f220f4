"""Implements the methods Otter is compared with, on the same base, data and loops."""
