"""The shared trainer: one loop for all methods."""
