"""Where scenes, units and flows come from."""
