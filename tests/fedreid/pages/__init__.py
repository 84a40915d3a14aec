"""Tests of fedreid.pages."""
