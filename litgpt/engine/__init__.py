"""The one generation engine: requests that share a model and its cache, sampling, speculation, several devices."""
