"""Whole federations on one machine: demo, generated silos, reports. May import both programs."""
