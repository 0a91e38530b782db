"""The Experts panel: which experts each cell chose, and the deformation."""
