"""From samples to micro-batches: their order, documents within blocks, packing, shares of ranks."""
