"""Checkpoint folders and files: layout, reading, writing, converting."""
