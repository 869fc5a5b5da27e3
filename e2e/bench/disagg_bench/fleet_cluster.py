"""A control plane with simulated H200 nodes, and the operator as a process beside it."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from kubernetes import client, config, utils

from disagg_bench.processes import resident_bytes
from disagg_cluster import control_plane
from disagg_operator import names
from disagg_operator.api import crd

NAMESPACE: Final = "fleet"
_CHANGES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})
_CRD_S: Final = 30.0
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

    def ready_pods(self, selector: str) -> int:
        found = self.core.list_namespaced_pod(
            NAMESPACE, label_selector=selector, resource_version="0"
        )
        return sum(
            condition.type == "Ready" and condition.status == "True"
            for pod in found.items
            for condition in pod.status.conditions or ()
        )

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


def _resource(target: Mapping[str, str]) -> str:
    below = target.get("subresource", "")
    return f"{target.get('resource', '')}{'/' if below else ''}{below}"


@contextlib.contextmanager
def fleet_cluster(nodes: int) -> Iterator[FleetCluster]:
    with (
        control_plane(kwok_nodes=nodes) as kubeconfig,
        config.new_client_from_config(str(kubeconfig)) as api,
    ):
        cluster = FleetCluster(kubeconfig=kubeconfig, api=api)
        cluster.core.create_namespace({"metadata": {"name": NAMESPACE}})
        for document in crd.crds():
            utils.create_from_dict(api, document)
        extensions = client.ApiextensionsV1Api(api)

        def established(name: str) -> bool:
            found = extensions.read_custom_resource_definition(name).status.conditions or ()
            return any(item.type == "Established" and item.status == "True" for item in found)

        await_that(
            "the CRDs are served",
            lambda: established(crd.NAME) and established(crd.SCALER_NAME),
            within_s=_CRD_S,
        )
        yield cluster


class OperatorProcess:
    """`python -m disagg_operator` against a cluster; use as a context manager."""

    def __init__(self, cluster: FleetCluster, folder: Path, *, port: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "operator.log"
        self._port = port
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig),
            "DISAGG_AGENT_IMAGE": "agent:1",
            "DISAGG_ENGINE_IMAGE": "engine:1",
            "DISAGG_ROUTER_IMAGE": "router:1",
            "DISAGG_WATCH_NAMESPACES": NAMESPACE,
            "DISAGG_OPERATOR_PORT": str(port),
            "DISAGG_LOG_LEVEL": "WARNING",
        }

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "disagg_operator"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    def metric(self, name: str) -> float:
        """The sum of a metric's series; 0 while the process does not answer yet."""
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self._port}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            return sum(
                float(line.rpartition(" ")[2])
                for line in lines
                if line.partition("{")[0].partition(" ")[0] == name
            )
        return 0.0
