"""A pair in, a Registration out: alignment, network, refinement."""
