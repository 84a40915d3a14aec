"""Whole federations: real processes, real mTLS, on loopback."""
