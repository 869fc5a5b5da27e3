"""Rows of a fleet: a real API server, simulated H200 nodes, the real operator."""

import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from kubernetes import client, watch

from disagg_bench.fleet_agents import FakeAgents
from disagg_bench.fleet_cluster import (
    NAMESPACE,
    FleetCluster,
    await_that,
    fleet_cluster,
)
from disagg_bench.processes import cpu_s, resident_bytes
from disagg_bench.rows import Row, at_least, at_most
from disagg_fleet import OperatorProcess
from disagg_operator import names

NODES: Final = 50
DEPLOYMENTS: Final = 100
LARGE: Final = 1000
IDLE_S: Final = 300.0
_PODS_EACH: Final = 4
_SAMPLES: Final = 50
_LIMIT_S: Final = 900.0
_REST_S: Final = 5.0
_CLIENTS: Final = 4
_AGENT: Final = names.FIELD_MANAGER
_ROLE_PODS: Final = f"{names.LABEL_ROLE} in (prefill,decode)"


def measure_fleet(folder: Path) -> Iterator[Row]:
    """100 deployments of 2P+2D beside 200 StatefulSets of 2 pods; then what they cost at rest."""
    with fleet_cluster(NODES) as cluster, FakeAgents() as agents:
        sets_s = _stateful_sets(cluster)
        with _operator(cluster, folder) as operator:
            _warm_up(cluster)
            ours_s = _deployments(cluster, range(DEPLOYMENTS))
            yield Row(name="fleet/statefulsets-ready", value=sets_s, unit="s")
            yield Row(name="fleet/deployments-ready", value=ours_s, unit="s")
            yield Row(
                name="fleet/vs-statefulsets", value=sets_s / ours_s, unit="x", target=at_least(4)
            )
            yield from _writes(cluster)
            yield _latency(cluster, agents, range(DEPLOYMENTS), limit_s=1.0)
            yield _idle(cluster)
            yield from _large(cluster, agents, operator)
        yield from _restarted(cluster, folder)


def _operator(cluster: FleetCluster, folder: Path) -> OperatorProcess:
    return OperatorProcess(
        cluster.kubeconfig,
        namespace=NAMESPACE,
        log=folder / "operator.log",
        log_level="WARNING",
    )


def _stateful_sets(cluster: FleetCluster) -> float:
    apps = client.AppsV1Api(cluster.api)
    started = time.monotonic()
    _each(range(2 * DEPLOYMENTS), lambda n: apps.create_namespaced_stateful_set(NAMESPACE, _set(n)))
    cluster.await_ready_pods("app=plain", _PODS_EACH * DEPLOYMENTS, within_s=_LIMIT_S)
    taken_s = time.monotonic() - started
    apps.delete_collection_namespaced_stateful_set(NAMESPACE, propagation_policy="Background")
    # The garbage collector takes their pods and revisions one by one.
    for left in (
        apps.list_namespaced_stateful_set,
        apps.list_namespaced_controller_revision,
        cluster.core.list_namespaced_pod,
    ):
        await_that(
            "the StatefulSets are gone",
            lambda left=left: not left(NAMESPACE, limit=1).items,  # type: ignore[misc]
            within_s=_LIMIT_S,
        )
    return taken_s


def _set(number: int) -> dict[str, Any]:
    labels = {"app": "plain", "set": str(number)}
    container = {
        "name": "engine",
        "image": "engine:1",
        "resources": {"limits": {"nvidia.com/gpu": "1", "rdma/ib": "1"}},
    }
    return {
        "metadata": {"name": f"plain-{number}"},
        "spec": {
            "replicas": 2,
            "serviceName": "plain",
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def _deployment(number: int, *, profile: str = "h200") -> dict[str, Any]:
    one_gpu = {"gpusPerNode": 1} if profile == "h200" else {}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": f"fleet-{number}", "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "model"},
            "engine": {"type": "custom", "image": "engine:1"},
            "hardware": {"profile": profile},
            "roles": {role: {"replicas": 2, **one_gpu} for role in names.ROLES},
        },
    }


def _warm_up(cluster: FleetCluster) -> None:
    """The operator is up once it has told of a resource that asks for nothing."""
    body = _deployment(0)
    name = body["metadata"]["name"] = "warm-up"
    for role in body["spec"]["roles"].values():
        role["replicas"] = 0
    _create(cluster, body)
    await_that(
        "the operator works",
        lambda: any("status" in item for item in cluster.resources()),
        within_s=_LIMIT_S,
    )
    cluster.custom.delete_namespaced_custom_object(
        names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, name
    )
    await_that("it is gone", lambda: not cluster.resources(), within_s=_LIMIT_S)


def _create(cluster: FleetCluster, body: dict[str, Any]) -> None:
    cluster.custom.create_namespaced_custom_object(
        names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, body
    )


def _each(numbers: range, work: Any) -> None:
    with ThreadPoolExecutor(_CLIENTS) as pool:
        list(pool.map(work, numbers))


def _deployments(cluster: FleetCluster, numbers: range, *, profile: str = "h200") -> float:
    started = time.monotonic()
    _each(numbers, lambda n: _create(cluster, _deployment(n, profile=profile)))
    cluster.await_ready_pods(_ROLE_PODS, _PODS_EACH * numbers.stop, within_s=_LIMIT_S)
    taken_s = time.monotonic() - started
    await_that("every status is Ready", lambda: _all_ready(cluster, numbers), within_s=_LIMIT_S)
    return taken_s


def _all_ready(cluster: FleetCluster, numbers: range) -> bool:
    wanted = {f"fleet-{number}" for number in numbers}
    return all(
        item.get("status", {}).get("phase") == names.PHASE_READY
        for item in cluster.resources()
        if item["metadata"]["name"] in wanted
    )


def _writes(cluster: FleetCluster) -> Iterator[Row]:
    """By the operator's user agent: pods aside, for each deployment; kopf's own are included."""
    counted = cluster.writes(_AGENT)
    pods = counted.pop(("create", "pods"), 0)
    yield Row(
        name="fleet/writes-per-deployment",
        value=counted.total() / DEPLOYMENTS,
        unit="",
        target=at_most(15),
    )
    yield Row(
        name="fleet/pod-writes-per-pod",
        value=pods / (_PODS_EACH * DEPLOYMENTS),
        unit="",
        target=at_most(1),
    )


def _idle(cluster: FleetCluster) -> Row:
    before = cluster.writes(_AGENT).total()
    threading.Event().wait(IDLE_S)
    return Row(
        name=f"fleet/writes-in-{IDLE_S:g}s-idle",
        value=cluster.writes(_AGENT).total() - before,
        unit="",
        target=at_most(0),
    )


def _latency(cluster: FleetCluster, agents: FakeAgents, numbers: range, *, limit_s: float) -> Row:
    """An agent tells of a timeout: seconds until the status of its resource does, p99.

    `numbers` are of resources that have told of none: a second one is news to its counters only.
    """
    taken = []
    for number in _drawn(numbers):
        resource = f"fleet-{number}"
        pods = cluster.core.list_namespaced_pod(
            NAMESPACE, label_selector=f"{names.LABEL_DEPLOYMENT}={resource},{_ROLE_PODS}"
        ).items
        by_role = {pod.metadata.labels[names.LABEL_ROLE]: pod for pod in pods}
        decode, prefill = by_role[names.DECODE], by_role[names.PREFILL]
        told = threading.Event()
        watching = threading.Thread(target=_await_failure, args=(cluster, resource, told))
        watching.start()
        told.wait()
        told.clear()
        started = time.monotonic()
        agents.fail(
            decode.status.pod_ip,
            decode_pod=decode.metadata.name,
            prefill_pod=prefill.metadata.name,
        )
        watching.join()
        taken.append(time.monotonic() - started)
    name = f"fleet/told-{numbers.stop}-deployments-p99"
    return Row(name=name, value=_p99(taken), unit="s", target=at_most(limit_s))


def _await_failure(cluster: FleetCluster, resource: str, listening: threading.Event) -> None:
    """Returns when the status says so; sets `listening` once the watch is open."""
    version = cluster.custom.list_namespaced_custom_object(
        names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, limit=1
    )["metadata"]["resourceVersion"]
    listening.set()
    events = watch.Watch().stream(
        cluster.custom.list_namespaced_custom_object,
        names.GROUP,
        names.VERSION,
        NAMESPACE,
        names.PLURAL,
        field_selector=f"metadata.name={resource}",
        resource_version=version,
        timeout_seconds=60,
    )
    for event in events:
        if event["object"].get("status", {}).get("reason") == names.REASON_STATE_TRANSFER_TIMEOUT:
            return
    raise TimeoutError(f"the status of {resource} did not tell of the timeout within 60 s")


def _drawn(numbers: range) -> list[int]:
    """The same resources in every run."""
    return random.Random(len(numbers)).sample(numbers, _SAMPLES)  # noqa: S311 - nothing secret


def _p99(values: list[float]) -> float:
    return sorted(values)[-1 - len(values) // 100]


def _large(cluster: FleetCluster, agents: FakeAgents, operator: OperatorProcess) -> Iterator[Row]:
    _deployments(cluster, range(DEPLOYMENTS, LARGE), profile="cpu")
    name = f"fleet/{LARGE}-deployments"
    yield Row(
        name=f"{name}-memory",
        value=resident_bytes(operator.pid) / 1e6,
        unit="MB",
        target=at_most(400),
    )
    await_that("the operator is at rest", lambda: _rests(operator), within_s=_LIMIT_S)
    yield _change(cluster, name=f"{name}-change-p99")
    yield _latency(cluster, agents, range(DEPLOYMENTS, LARGE), limit_s=2.0)


def _rests(operator: OperatorProcess) -> bool:
    """The thousands of events of the creation are behind it: it takes less than half a core."""
    before = cpu_s(operator.pid)
    threading.Event().wait(_REST_S)
    return cpu_s(operator.pid) - before < _REST_S / 2


def _change(cluster: FleetCluster, *, name: str) -> Row:
    """From a changed spec to a status that is about it."""
    taken = []
    for number in _drawn(range(LARGE)):
        resource = f"fleet-{number}"
        patched = cluster.custom.patch_namespaced_custom_object(
            names.GROUP,
            names.VERSION,
            NAMESPACE,
            names.PLURAL,
            resource,
            {"spec": {"transfer": {"faultSwitch": "Disabled"}, "router": {"port": 8001}}},
        )
        generation = patched["metadata"]["generation"]
        started = time.monotonic()
        for _ in itertools.count():
            found = cluster.custom.get_namespaced_custom_object(
                names.GROUP, names.VERSION, NAMESPACE, names.PLURAL, resource
            )
            if found.get("status", {}).get("observedGeneration") == generation:
                break
            time.sleep(0.005)
        taken.append(time.monotonic() - started)
    return Row(name=name, value=_p99(taken), unit="s", target=at_most(1.0))


def _restarted(cluster: FleetCluster, folder: Path) -> Iterator[Row]:
    """A fresh operator over the large fleet: until it has looked at every resource."""
    started = time.monotonic()
    with _operator(cluster, folder) as operator:
        await_that(
            "one pass over every resource",
            lambda: operator.metric("disagg_operator_reconcile_total") >= LARGE,
            within_s=_LIMIT_S,
        )
        yield Row(
            name=f"fleet/{LARGE}-deployments-start",
            value=time.monotonic() - started,
            unit="s",
        )
