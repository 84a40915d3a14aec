"""The coordinator: one long-running service that runs the rounds of a federation."""
