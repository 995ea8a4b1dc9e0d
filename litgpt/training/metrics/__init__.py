"""What a run measures and shows: losses, throughput, logs, loggers, the report."""
