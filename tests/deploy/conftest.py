"""What do the tests of packages and units start with?"""

from tests.federation.conftest import found, images, silo_folders

__all__ = ["found", "images", "silo_folders"]
