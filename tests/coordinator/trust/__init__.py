"""Tests of coordinator.trust."""
