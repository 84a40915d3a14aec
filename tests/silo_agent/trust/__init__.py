"""Tests of silo_agent.trust."""
