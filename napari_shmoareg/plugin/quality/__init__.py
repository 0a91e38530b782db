"""The Quality panel: compares images, shows measures and saves a registration."""
