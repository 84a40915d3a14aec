"""Boards for Grafana, made from typed code."""
