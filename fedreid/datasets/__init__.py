"""Images on disk: the layouts operators and researchers have, and generated ones."""
