"""``python -m silo_agent`` is the console script."""

from silo_agent.cli import main

main()
