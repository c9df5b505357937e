"""Runs of daptkit in TensorBoard."""
