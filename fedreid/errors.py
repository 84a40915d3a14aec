"""What can go wrong for a user, and what does each error say?

The tree::

    FedreidError                    what happened, why, what to do next
    ├── UsageError                  a command, plan, configuration or name is wrong       exit 2
    │   ├── NameRefused
    │   ├── PlanRefused
    │   └── ConfigRefused
    ├── TrustError                  who is who could not be settled                       exit 3
    │   ├── TokenRefused
    │   ├── IdentityMissing
    │   ├── IdentityBroken
    │   ├── AccessDenied
    │   │   └── SiloSuspended       passes when the coordinator's operators let the silo in again
    │   ├── SignatureRefused
    │   └── AuditBroken
    ├── ConnectionFailed            the other side can't be reached, or broke off         exit 4
    │   ├── LimitReached
    │   └── VersionsApart           passes when one of the two programs is upgraded
    ├── DatasetError                images that can't be read or trained on               exit 5
    ├── StorageError                disk full, read-only, damaged file                    exit 6
    ├── UpdateRefused               an update that must not count, with a closed reason   exit 7
    ├── PolicyRefused               the operator's policy forbids what was asked          exit 8
    └── RunError                    a run or job that can't go on                         exit 9
        └── JobFailed

Each class has a stable ``code``, one gRPC status in :data:`GRPC_STATUS` and one exit code.
"""

import enum
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ExitCode(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    TRUST = 3
    CONNECTION = 4
    DATASET = 5
    STORAGE = 6
    UPDATE = 7
    POLICY = 8
    RUN = 9
    INTERRUPTED = 130


def encodable(text: str) -> str:
    """The text without what UTF-8 can't carry: bytes of file names in some older encoding."""
    return text.encode("utf-8", "replace").decode()


class FedreidError(Exception):
    """An error that is told to a user: what happened, the likely cause, the next step."""

    code = "internal"
    exit_code = ExitCode.INTERNAL
    retryable = False

    def __init__(self, what: str, *, why: str = "", next_step: str = "") -> None:
        self.what, self.why, self.next_step = map(encodable, (what, why, next_step))
        super().__init__(self.what, self.why, self.next_step)

    @property
    def brief(self) -> str:
        """What happened and why, without the next step."""
        return f"{self.what.rstrip('.')}: {self.why}" if self.why else self.what

    def __str__(self) -> str:
        sentences = [self.brief, self.next_step]
        return " ".join(s if s.endswith((".", "?")) else s + "." for s in sentences if s)


class UsageError(FedreidError):
    """The command, plan, configuration or name that the user gave is wrong."""

    code = "usage"
    exit_code = ExitCode.USAGE


class NameRefused(UsageError):
    """A name that can't be a URI segment, folder and label at once."""

    code = "name_refused"

    def __init__(self, *, what: str, text: str) -> None:
        super().__init__(
            f"{text!r} can't be a {what}",
            why="a name is 1 to 63 lower-case letters, digits and inner hyphens",
            next_step="Choose a name such as 'station-north'.",
        )

    @classmethod
    def retold(cls, message: str) -> "NameRefused":
        """The error as another process told it."""
        error = cls(what="name", text="")
        FedreidError.__init__(error, message)
        return error


class PlanRefused(UsageError):
    """A plan with an unknown key or a value out of range."""

    code = "plan_refused"


class ConfigRefused(UsageError):
    """A configuration file that can't be used."""

    code = "config_refused"


class TrustError(FedreidError):
    """Who is who could not be settled."""

    code = "trust"
    exit_code = ExitCode.TRUST


class TokenRefused(TrustError):
    """A join token that is malformed, unknown, expired or already used by another key."""

    code = "token_refused"

    def __init__(
        self, what: str, *, reused: bool = False, why: str = "", next_step: str = ""
    ) -> None:
        self.reused = reused
        """Another key has used it before: it has leaked, or two agents share it."""
        super().__init__(what, why=why, next_step=next_step)


class IdentityMissing(TrustError):
    """No identity in the data folder yet."""

    code = "identity_missing"


class IdentityBroken(TrustError):
    """An identity whose files do not fit together, or whose certificate has expired."""

    code = "identity_broken"


class Denial(enum.Enum):
    """Why a call is denied; the closed label set of the counter of denied calls."""

    CERTIFICATE = "certificate"
    FEDERATION = "federation"
    EXPIRED = "expired"
    AUTHORITY = "authority"
    ROLE = "role"
    NOT_REGISTERED = "not_registered"
    STATE = "state"
    KEY = "key"
    LIMIT = "limit"
    OTHER = "other"


class AccessDenied(TrustError):
    """The caller is known but may not do this, or is not known at all."""

    code = "access_denied"

    def __init__(
        self, what: str, *, reason: Denial = Denial.OTHER, why: str = "", next_step: str = ""
    ) -> None:
        self.reason = reason
        super().__init__(what, why=why, next_step=next_step)


class SiloSuspended(AccessDenied):
    """The silo is kept out for a time."""

    code = "silo_suspended"
    retryable = True


class SignatureRefused(TrustError):
    """A model that is unsigned, tampered with, or older than one already seen."""

    code = "signature_refused"


class AuditBroken(TrustError):
    """An audit log whose chain of hashes does not hold."""

    code = "audit_broken"


class ConnectionFailed(FedreidError):
    """The other side can't be reached, or the connection broke."""

    code = "connection_failed"
    exit_code = ExitCode.CONNECTION
    retryable = True


class LimitReached(ConnectionFailed):
    """The other side has as much under way as it allows this caller; later it has not."""

    code = "limit_reached"


class VersionsApart(ConnectionFailed):
    """Agent and coordinator are of versions that do not work together."""

    code = "versions_apart"


class DatasetError(FedreidError):
    """Images that can't be read, or can't be trained on."""

    code = "dataset"
    exit_code = ExitCode.DATASET


class StorageError(FedreidError):
    """A disk that is full or read-only, or a file that is damaged."""

    code = "storage"
    exit_code = ExitCode.STORAGE


class Refusal(enum.Enum):
    """Why an update does not count; the closed label set of the rejection counter."""

    MANIFEST = "manifest"
    TENSOR_NAMES = "tensor_names"
    TENSOR_SHAPE = "tensor_shape"
    TENSOR_DTYPE = "tensor_dtype"
    BYTE_COUNT = "byte_count"
    ENCODING = "encoding"
    CHUNK = "chunk"
    DIGEST = "digest"
    NOT_FINITE = "not_finite"
    NEGATIVE_VARIANCE = "negative_variance"
    NORM = "norm"
    WEIGHT = "weight"
    REPORT = "report"
    STALE = "stale"
    NOT_INVITED = "not_invited"
    QUOTA = "quota"


BROKEN_LINE = frozenset({Refusal.CHUNK, Refusal.BYTE_COUNT, Refusal.DIGEST})
"""Refusals that a broken line can cause: the same update may be sent again."""


class UpdateRefused(FedreidError):
    """An update that must not count."""

    code = "update_refused"
    exit_code = ExitCode.UPDATE

    def __init__(self, reason: Refusal, what: str, *, why: str = "", next_step: str = "") -> None:
        self.reason = reason
        super().__init__(what, why=why, next_step=next_step)


class PolicyRefused(FedreidError):
    """The operator's policy forbids what the coordinator asked for."""

    code = "policy_refused"
    exit_code = ExitCode.POLICY

    def __init__(
        self,
        what: str,
        *,
        key: str = "policy",
        why: str = "",
        next_step: str = "",
        again_at_s: float | None = None,
    ) -> None:
        self.key = key
        """Of the policy, that decides: all that the coordinator is told of the refusal."""
        self.again_at_s = again_at_s
        """When asking again may help, seconds since the epoch; None: a person has to act."""
        super().__init__(what, why=why, next_step=next_step)


class RunError(FedreidError):
    """A run that can't start or go on."""

    code = "run"
    exit_code = ExitCode.RUN


class JobFailed(RunError):
    """A training or aggregation job whose process failed."""

    code = "job_failed"


GRPC_STATUS: dict[type[FedreidError], str] = {
    UsageError: "INVALID_ARGUMENT",
    TokenRefused: "PERMISSION_DENIED",
    TrustError: "PERMISSION_DENIED",
    ConnectionFailed: "UNAVAILABLE",
    LimitReached: "RESOURCE_EXHAUSTED",
    VersionsApart: "FAILED_PRECONDITION",
    DatasetError: "FAILED_PRECONDITION",
    StorageError: "RESOURCE_EXHAUSTED",
    UpdateRefused: "INVALID_ARGUMENT",
    PolicyRefused: "FAILED_PRECONDITION",
    RunError: "FAILED_PRECONDITION",
}
"""The gRPC status name of each branch of the tree; a subclass takes its nearest ancestor's."""


def grpc_status_name(error: FedreidError) -> str:
    """The name of the gRPC status code that carries ``error``."""
    for kind in type(error).__mro__:
        if kind in GRPC_STATUS:
            return GRPC_STATUS[kind]
    return "INTERNAL"


_DISK_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space; nothing is lost."),
    errno.EDQUOT: ("the disk quota is used up", "Raise the quota; nothing is lost."),
    errno.EROFS: ("the file system is read-only", "Remount it writable; nothing is lost."),
    errno.EACCES: ("access is denied", "Correct the owner or mode of the folder."),
    errno.EIO: (
        "the disk reported an I/O error",
        "Check the disk; on a new one restore the newest backup.",
    ),
}


@contextmanager
def storage_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a :class:`StorageError` that names cause and remedy."""
    try:
        yield
    except OSError as error:
        why, next_step = _DISK_REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StorageError(f"Can't {doing} {path}", why=why, next_step=next_step) from error
