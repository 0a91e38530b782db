"""The Quality panel: compare before and after, read the figures, save."""
