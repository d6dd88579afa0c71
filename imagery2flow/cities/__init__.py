"""What imagery says of cities: which one is this, why, what is it like, how does it score."""
