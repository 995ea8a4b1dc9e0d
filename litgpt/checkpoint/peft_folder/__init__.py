"""PEFT's folders of updates, read and written."""
