"""The Landmarks panel: pairs of points and their distances in mm."""
