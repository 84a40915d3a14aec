"""Does docs/metrics.md say what the two programs expose?"""

import subprocess
import sys

from tests.docs.metrics_page import PAGE


def test_the_page_is_current() -> None:
    # in a process of its own: other tests leave series behind
    done = subprocess.run(
        [sys.executable, "-c", "from tests.docs.metrics_page import page; print(page(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PAGE.parents[1],
    )
    assert PAGE.read_text("utf-8") == done.stdout, "python -m tests.docs.metrics_page"
