"""Is a program of the system there that a test needs? Where CI runs it has to be."""

import os
import shutil

import pytest

PACKAGES = {
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
}
"""The Debian package of each; ``.ci/run`` installs them."""


def tool(name: str) -> str:
    """The path of a program; without it the test is skipped, and fails where ``CI=true``."""
    path = shutil.which(name)
    if path is None:
        told = f"{name} is missing: apt-get install --no-install-recommends {PACKAGES[name]}"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    return path
