"""Tests of fedreid.pki."""
