"""`litgpt serve`: a model behind HTTP."""
