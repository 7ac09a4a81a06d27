"""What two or more stages of the marketplace pipeline share, one concept a module."""
