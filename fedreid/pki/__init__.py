"""Certificates, identities and join tokens of a federation."""
