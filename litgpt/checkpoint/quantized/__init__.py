"""Hugging Face folders whose weights are stored in few bits, read and written."""
