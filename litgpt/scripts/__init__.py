"""The smaller commands: download, convert, merge, validate."""
