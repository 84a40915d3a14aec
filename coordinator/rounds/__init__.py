"""Rounds from the first invitation to the published model."""
