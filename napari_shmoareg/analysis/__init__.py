"""What the routing and the deformation of a registration say."""
