"""How are a federation's keys kept in a Kubernetes cluster? As Secrets, made once, never changed.

Run as a job before the coordinator is installed. What is there stays as it is, whoever made it, so
that installing, upgrading and installing again all trust the same authority.
"""

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from coordinator.founding import admin_files, keys_from, new_keys
from fedreid.clock import Clock
from fedreid.errors import ConnectionFailed, storage_errors
from fedreid.limits import CALL_S
from fedreid.names import FederationName

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its token, its cluster's authority and its namespace."""

_CONFLICT = 409
_ADMIN = "admin"


class SecretStore(Protocol):
    """Where Secrets are kept."""

    def create(self, name: str, files: Mapping[str, bytes], kind: str) -> bool:
        """Make a Secret; False if there is one of that name, which is left alone."""
        ...

    def read(self, name: str) -> dict[str, bytes]:
        """The files of a Secret."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The Secrets of one namespace, as a pod's service account may see them."""

    server: str
    """https://HOST:PORT of the cluster's API."""
    account: Path

    def create(self, name: str, files: Mapping[str, bytes], kind: str) -> bool:
        """Make a Secret; False if there is one of that name, which is left alone.

        Raises:
            ConnectionFailed: the API is away, or does not allow it.
        """
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "fedreid"}},
            "type": kind,
            "data": {key: base64.b64encode(value).decode() for key, value in files.items()},
        }
        try:
            self._ask("POST", "", json.dumps(secret).encode())
        except urllib.error.HTTPError as error:
            if error.code == _CONFLICT:
                return False
            raise self._failed("make", name, error) from error
        except OSError as error:
            raise self._failed("make", name, error) from error
        return True

    def read(self, name: str) -> dict[str, bytes]:
        """The files of a Secret.

        Raises:
            ConnectionFailed: the API is away, or does not allow it, or there is none.
        """
        try:
            found = self._ask("GET", f"/{name}", None)
        except OSError as error:
            raise self._failed("read", name, error) from error
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        with storage_errors("read", self.account):
            token = (self.account / "token").read_text("ascii").strip()
            namespace = (self.account / "namespace").read_text("ascii").strip()
        context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        request = urllib.request.Request(  # noqa: S310 - https only: see the check below
            f"{self.server}/api/v1/namespaces/{namespace}/secrets{path}",
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        assert request.type == "https"
        with urllib.request.urlopen(request, timeout=CALL_S, context=context) as answer:  # noqa: S310
            decoded: dict[str, Any] = json.load(answer)
        return decoded

    def _failed(self, what: str, name: str, error: OSError) -> ConnectionFailed:
        return ConnectionFailed(
            f"Can't {what} the Secret {name} by {self.server}",
            why=str(error),
            next_step="Check the role of this job's service account.",
        )


def found_federation(
    secrets: SecretStore,
    federation: FederationName,
    *,
    authority: str,
    admin: str,
    clock: Clock,
    say: Callable[[str], None],
) -> None:
    """Make the Secrets ``authority`` and ``admin`` where they are missing.

    Raises:
        ConnectionFailed: the cluster does not let us.
        IdentityBroken: the Secret ``authority`` is there and can't be used.
    """
    keys = new_keys(federation, now_s=clock.now_s())
    made = secrets.create(authority, keys.files(), "Opaque")
    say(f"the Secret {authority} " + ("is made" if made else "is there, and stays as it is"))
    if not made:
        keys = keys_from(secrets.read(authority), f"the Secret {authority}")
    files = admin_files(keys, federation, _ADMIN, now_s=clock.now_s())
    made = secrets.create(admin, files, "kubernetes.io/tls")
    say(f"the Secret {admin} " + ("is made" if made else "is there, and stays as it is"))
