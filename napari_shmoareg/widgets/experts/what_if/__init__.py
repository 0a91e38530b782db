"""The Experts panel, tab What if: experts silenced and forced."""
