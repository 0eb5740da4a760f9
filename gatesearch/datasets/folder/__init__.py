"""A folder of a user's own images and labels, without any code."""
