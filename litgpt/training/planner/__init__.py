"""What a training command will take, computed before it runs and without its weights."""
