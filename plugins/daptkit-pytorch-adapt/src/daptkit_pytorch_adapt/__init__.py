"""Losses and scores of pytorch-adapt that fit a shared trainer."""
