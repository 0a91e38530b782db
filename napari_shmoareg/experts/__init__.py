"""What the routing of a registration says, and what depends on it."""
