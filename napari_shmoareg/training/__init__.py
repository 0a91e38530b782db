"""Learning: settings, losses, steps, run folder, synthetic pairs."""
