"""The Experts panel, tab Layers: the load of every gate."""
