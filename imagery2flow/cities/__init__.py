"""Which city a tile looks like, how good its index is known from above, and why a model says so."""
