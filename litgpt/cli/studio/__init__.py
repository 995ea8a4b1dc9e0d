"""`litgpt studio`: runs as they go, in a browser."""
