"""The cluster that a fleet is measured on, and what its audit log counts."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config

from disagg_fleet import fleet
from disagg_operator import names

NAMESPACE: Final = "fleet"
_CHANGES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_POLL_S: Final = 0.1


class FleetError(Exception):
    """The fleet did not come to where it had to."""


def await_that(what: str, holds: Callable[[], bool], *, within_s: float) -> float:
    """Seconds until it holds; FleetError when it does not in time."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > within_s:
            raise FleetError(f"not within {within_s:g} s: {what}")
        time.sleep(_POLL_S)
    return time.monotonic() - started


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCluster:
    kubeconfig: Path
    api: client.ApiClient

    @property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @property
    def custom(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self.api)

    def resources(self) -> list[dict[str, Any]]:
        found: dict[str, Any] = self.custom.list_namespaced_custom_object(
            names.GROUP, names.VERSION, NAMESPACE, names.PLURAL
        )
        items: list[dict[str, Any]] = found["items"]
        return items

    def await_ready_pods(self, selector: str, count: int, *, within_s: float) -> None:
        """By a watch, read as plain JSON: listing hundreds of pods again and again would take one
        of two cores from what is measured.
        """
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:  # the server may end a watch at any time
            ready: set[str] = set()
            for kind, pod in self._watched(selector, within_s=deadline - time.monotonic()):
                keep = kind != "DELETED" and _is_ready(pod)
                (ready.add if keep else ready.discard)(pod["metadata"]["name"])
                if len(ready) >= count:
                    return
        raise FleetError(f"not within {within_s:g} s: {count} ready pods of {selector}")

    def _watched(self, selector: str, *, within_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Type and object of each event, those that are there first; until the server ends it."""
        answer = self.core.list_namespaced_pod(
            NAMESPACE,
            label_selector=selector,
            watch=True,
            timeout_seconds=max(1, int(within_s)),
            _preload_content=False,
        )
        with contextlib.closing(answer):
            for line in _lines(answer.stream()):
                event = json.loads(line)
                yield event["type"], event["object"]

    def writes(self, agent: str) -> Counter[tuple[str, str]]:
        """(verb, resource) of every change that a user agent made, from the audit log."""
        counted: Counter[tuple[str, str]] = Counter()
        log = self.kubeconfig.parent.parent / "logs" / "audit.log"
        with log.open(encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                if agent in event.get("userAgent", "") and event["verb"] in _CHANGES:
                    target = event.get("objectRef", {})
                    counted[event["verb"], _resource(target)] += 1
        return counted


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        yield from whole


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


def _resource(target: Mapping[str, str]) -> str:
    below = target.get("subresource", "")
    return f"{target.get('resource', '')}{'/' if below else ''}{below}"


@contextlib.contextmanager
def fleet_cluster(nodes: int) -> Iterator[FleetCluster]:
    with (
        fleet(nodes=nodes) as kubeconfig,
        config.new_client_from_config(str(kubeconfig)) as api,
    ):
        cluster = FleetCluster(kubeconfig=kubeconfig, api=api)
        cluster.core.create_namespace({"metadata": {"name": NAMESPACE}})
        yield cluster
