"""The smaller commands: download, convert, merge, validate, list, remove, check the machine."""
