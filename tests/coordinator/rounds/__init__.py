"""Tests of coordinator.rounds."""
