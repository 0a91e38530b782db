"""Registration of a pair: alignment, network, refinement."""
