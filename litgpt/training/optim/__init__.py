"""Optimizers: made from a name or a dictionary, Muon, steps inside the backward pass."""
