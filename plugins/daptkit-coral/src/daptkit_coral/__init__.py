"""CORAL: alignment of means and covariances."""
