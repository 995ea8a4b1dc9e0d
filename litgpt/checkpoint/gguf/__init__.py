"""GGUF, llama.cpp's file format, read and written."""

GGUF_SUFFIX = ".gguf"
