"""``python -m benchmark`` is the console script."""

from benchmark.cli import main

main()
