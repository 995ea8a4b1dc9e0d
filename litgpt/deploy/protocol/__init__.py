"""What clients send and get: schemas, parsing, errors, events, tool calls."""
