"""Sentences that read the numbers of report.json, in plain words."""
