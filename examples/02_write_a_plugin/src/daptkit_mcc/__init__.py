"""MCC: minimum class confusion."""
