"""From a command's signature to its command line."""
