"""From scenes and areal units to one patch per unit, and from patches to batches of views."""
