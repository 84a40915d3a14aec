"""``python -m coordinator`` is the console script."""

from coordinator.cli import main

main()
