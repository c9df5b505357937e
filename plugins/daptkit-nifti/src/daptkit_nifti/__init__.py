"""Slices of NIfTI volumes as images."""
