"""The commands that generate text, over the one engine."""
