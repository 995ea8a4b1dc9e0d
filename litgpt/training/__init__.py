"""The one training loop, and what goes into a run: batches, loss, optimizer, schedule, metrics, saved states, plans."""
