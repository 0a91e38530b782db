"""The Experts panel, tab Place: what single places chose, and attend to."""
