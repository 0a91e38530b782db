"""The Experts panel: whose choices made the result, and how it deforms."""
