"""The Register panel: pick, run beside the window, lay the result over the fixed image."""
