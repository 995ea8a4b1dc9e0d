"""Data on disk: files of rows, token files, blocks, downloads, mixtures."""
