"""Training: settings, losses, steps, run folders, synthetic pairs."""
