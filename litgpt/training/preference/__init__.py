"""Training on preferences: the losses, their objective, and the log-probabilities of the reference."""
