"""The Landmarks panel: pairs of points, and their distance in mm."""
