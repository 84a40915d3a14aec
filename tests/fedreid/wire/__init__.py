"""Tests of fedreid.wire."""
