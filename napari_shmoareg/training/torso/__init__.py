"""Synthetic torsos, from the heart to the pelvis, as label maps for training pairs."""
