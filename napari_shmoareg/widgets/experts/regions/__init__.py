"""The Experts panel, tab Regions: loads within labels and shapes."""
