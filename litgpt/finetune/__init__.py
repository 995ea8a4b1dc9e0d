"""The finetuning commands, over the one training loop."""
