"""The few calls the cluster's own code makes: is it ready, apply these objects, list those."""

import http.client
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_cluster.addresses import LOOPBACK
from disagg_cluster.errors import ComponentError

FIELD_MANAGER = "disagg-cluster"
OK_BELOW = 300
CALL_TIMEOUT_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status < OK_BELOW


def is_healthy(port: int, path: str, *, secure: bool = True, host: str = LOOPBACK) -> bool:
    """A health endpoint's word. Its certificate is not checked: it is our own process on loopback."""
    connection = (
        http.client.HTTPSConnection(
            host,
            port,
            timeout=2,
            context=ssl._create_unverified_context(),  # noqa: S323, SLF001
        )
        if secure
        else http.client.HTTPConnection(host, port, timeout=2)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status < OK_BELOW
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiClient:
    port: int
    pki: Path

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        connection = http.client.HTTPSConnection(
            LOOPBACK, self.port, timeout=CALL_TIMEOUT_S, context=context
        )
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": content_type},
            )
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """None when it is not there, or the API server does not answer."""
        try:
            answer = self.call("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        if not answer.ok:
            return None
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def is_node_ready(self, name: str) -> bool:
        found = self.get(f"/api/v1/nodes/{name}")
        return found is not None and is_condition_true(found, "Ready")

    def apply(self, path: str, intent: Mapping[str, Any]) -> None:
        """Server-side apply of one object at its own path."""
        self._must(
            "PATCH",
            f"{path}?fieldManager={FIELD_MANAGER}&force=true",
            body=intent,
            content_type="application/apply-patch+yaml",
        )

    def create(self, path: str, body: Mapping[str, Any]) -> None:
        self._must("POST", path, body=body)

    def delete(self, path: str) -> None:
        self._must("DELETE", path)

    def _must(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> None:
        answer = self.call(method, path, body=body, content_type=content_type)
        if not answer.ok:
            text = answer.body.decode("utf-8", errors="replace")
            raise ComponentError(f"the API server refused {method} {path}: {answer.status} {text}")


def is_condition_true(resource: Mapping[str, Any], kind: str) -> bool:
    conditions = resource.get("status", {}).get("conditions", [])
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def wait_for(
    what: str,
    is_so: Callable[[], bool],
    *,
    timeout_s: float,
    failure: Callable[[], str | None] = lambda: None,
) -> None:
    """Waits for a condition; ends early when `failure` names why it can no longer come."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        reason = failure()
        if reason is None and time.monotonic() > deadline:
            reason = f"not so after {timeout_s:.0f} s"
        if reason is not None:
            raise ComponentError(f"{what}: {reason}")
        time.sleep(POLL_S)
