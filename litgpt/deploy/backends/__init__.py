"""Where the model runs: in the server's own process, or in LitServe's workers."""
