"""What coordinator and silo agent must agree on; imports neither of them."""

from importlib.metadata import version

__version__ = version("fedreid")
