"""Who was turned away? Collected, so that whoever knocks a thousand times fills no disk.

The audit log gets one line for each caller, service and reason of some seconds, with a count.
"""

from collections import Counter

from fedreid.audit import AuditLog
from fedreid.limits import DENIALS_KEPT

_OTHERS = ("", "", "more callers than are kept apart")


class Denials:
    """Refused calls since the last line about them."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def note(self, caller: str, service: str, reason: str) -> None:
        """Count one refusal; ``caller`` is the URI of the certificate, empty if it has none."""
        key = (caller, service, reason)
        if key not in self._counts and len(self._counts) >= DENIALS_KEPT:
            key = _OTHERS
        self._counts[key] += 1

    def write(self, audit: AuditLog) -> None:
        """Write what was collected; blocks on the disk. What can't be written is kept.

        Raises:
            StorageError: the disk is full, read-only or fails.
        """
        for (caller, service, reason), count in sorted(self._counts.items()):
            audit.append(
                "access.denied", caller=caller, service=service, reason=reason, count=count
            )
            self._counts[caller, service, reason] -= count
        self._counts = +self._counts
