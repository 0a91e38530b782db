"""The Experts panel, tab Maps and Deformation: who chose whom, and how it bent."""
