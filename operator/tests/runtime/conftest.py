"""A cluster in a dict: the API server's and the controllers' part in what a plan leads to."""

import copy
import itertools
import math
import time
from dataclasses import dataclass, field

import pytest

from disagg_fleet import fake_reports
from disagg_operator import names, render
from disagg_operator.api.status import DisaggDeploymentStatus
from disagg_operator.intents import (
    Apply,
    CreatePod,
    CreateScaler,
    Delete,
    EnsureGang,
    Tell,
    WriteKeys,
)
from disagg_operator.kinds import Kind
from disagg_operator.observe import (
    AgentView,
    guard_record,
    observe,
    pod_record,
    router_record,
    scaler_record,
    service_record,
)
from disagg_operator.plan import decide
from disagg_operator.report import Moment, status_of
from disagg_operator.root_key import RootKey
from disagg_operator.scaling import scaled
from disagg_operator.served import Ledger
from disagg_operator.tally import Tally, advance
from disagg_operator.timestamps import timestamp_s

# After STARTED, by a day.
NOW = 1767312000.0
STARTED = "2026-01-01T00:00:00Z"


class ClusterModel:
    """Objects by (kind, name). `settle` is what kubelet and deployment controller do in the end."""

    def __init__(self, images):
        self.images = images
        self.objects = {}
        self.keys = None
        self.keys_at = -math.inf
        self.root = RootKey(b"r" * 32)
        # (Service, generation) of the key file of each revision.
        self.key_files = {}
        self.gangs = frozenset()
        self.uids = itertools.count(1)
        # A moment after what `put` stamps.
        self.now = NOW
        self.restarts = {}
        self.progress = None
        self.views = {}

    def of(self, kind):
        return {name: body for (known, name), body in self.objects.items() if known is kind}

    def observed(self, deployment):
        return observe(
            owner_uid=deployment.uid,
            pods=map(pod_record, self.of(Kind.POD).values()),
            services=map(service_record, self.of(Kind.SERVICE).values()),
            routers=map(router_record, self.of(Kind.DEPLOYMENT).values()),
            guards=[
                guard_record(body, kind=kind)
                for kind in (Kind.DISRUPTION_BUDGET, Kind.NETWORK_POLICY)
                for body in self.of(kind).values()
            ],
            scalers=map(scaler_record, self.of(Kind.SCALER).values()),
        )

    def decide(self, deployment):
        observed = self.observed(deployment)
        return decide(
            scaled(deployment, observed.scalers),
            observed,
            images=self.images,
            keys=self.keys,
            keys_at=self.keys_at,
            root=self.root,
            gangs=self.gangs,
            restarts=self.restarts,
            progress=self.progress,
            views=self.views,
            now=self.now,
        )

    def carry_out(self, plan):
        self.restarts, self.progress = plan.restarts, plan.progress
        written = {}
        for intent in plan.intents:
            self.one(intent)
            if isinstance(intent, WriteKeys):
                uid = self.objects[Kind.SERVICE, intent.service]["metadata"]["uid"]
                self.key_files[intent.revision] = (uid, intent.generation)
                written[intent.revision] = self.root.key_id(uid, generation=intent.generation)
        self.keys_at = self.now if written else self.keys_at
        self.keys = plan.keys_after(self.keys, written=written, kept=(), now=self.now)

    def one(self, intent):
        match intent:
            case Apply(kind=kind, name=name, body=body):
                self.put(kind, name, body)
            case CreatePod(name=name, body=body):
                assert (Kind.POD, name) not in self.objects, f"pod {name} created twice"
                self.put(Kind.POD, name, body)
            case CreateScaler(name=name, body=body):
                assert (Kind.SCALER, name) not in self.objects, f"{name} created twice"
                self.put(Kind.SCALER, name, body)
            case Tell(kind=kind, name=name, body=body):
                assert "spec" not in body
                told = self.objects[kind, name]
                assert body["metadata"]["uid"] == told["metadata"]["uid"]
                told["status"] = _with_conditions(told["status"], body["status"])
            case WriteKeys(service=service):
                assert (Kind.SERVICE, service) in self.objects
            case EnsureGang(name=name, body=body):
                self.put(Kind.POD_GROUP, name, body)
                self.gangs |= {name}
            case Delete(kind=kind, name=name, uid=uid):
                assert self.objects[kind, name]["metadata"]["uid"] == uid
                del self.objects[kind, name]

    def put(self, kind, name, body):
        body = copy.deepcopy(body)
        known = self.objects.get((kind, name))
        metadata = body["metadata"]
        metadata["uid"] = known["metadata"]["uid"] if known else f"uid-{next(self.uids)}"
        generation = known["metadata"]["generation"] if known else 0
        changed = not known or known["spec"] != body["spec"]
        metadata["generation"] = generation + 1 if changed else generation
        metadata["creationTimestamp"] = timestamp_s(self.now)
        body["status"] = known["status"] if known else {}
        self.objects[kind, name] = body

    def settle(self):
        for body in self.of(Kind.POD).values():
            if body["status"].get("phase") not in {"Failed", "Succeeded"}:
                body["status"] = running_status(body)
        for body in self.of(Kind.DEPLOYMENT).values():
            body["status"] = rolled_status(body)

    def converge(self, deployment, *, rounds=60):
        for _ in range(rounds):
            plan = self.decide(deployment)
            if not plan.intents:
                self.progress = plan.progress
                return
            self.carry_out(plan)
            self.settle()
        raise AssertionError(f"no end after {rounds} rounds: {plan.intents}")


def _with_conditions(known, told):
    """As the server merges what is applied: conditions by type."""
    types = {item["type"] for item in told.get("conditions", ())}
    kept = [item for item in known.get("conditions", ()) if item["type"] not in types]
    return {**known, **told, "conditions": [*kept, *told.get("conditions", ())]}


def running_status(pod, *, ready=True):
    containers = [
        *pod["spec"].get("initContainers", ()),
        *pod["spec"]["containers"],
    ]
    sidecar = [container_status(c["name"], c["image"], ready=ready) for c in containers]
    split = len(pod["spec"].get("initContainers", ()))
    gates = gate_conditions(pod)
    ready = ready and all(gate["status"] == "True" for gate in gates)
    return {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if ready else "False"},
            *gates,
        ],
        "initContainerStatuses": sidecar[:split],
        "containerStatuses": sidecar[split:],
    }


def gate_conditions(pod):
    """Of each readiness gate; the kubelet takes one that nobody has told of for closed."""
    known = {item["type"]: item for item in pod.get("status", {}).get("conditions", ())}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", ())]
    return [known.get(gate, {"type": gate, "status": "False"}) for gate in gates]


def container_status(name, image="image:1", *, ready=True, **fields):
    found = {
        "name": name,
        "image": image,
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": {"running": {"startedAt": STARTED}},
    }
    return {**found, **fields}


def rolled_status(deployment):
    replicas = deployment["spec"]["replicas"]
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": replicas,
        "updatedReplicas": replicas,
        "availableReplicas": replicas,
        "readyReplicas": replicas,
    }


@pytest.fixture
def cluster(images):
    return ClusterModel(images)


@pytest.fixture(scope="session")
def new_cluster(images):
    """For property tests, which need a fresh cluster for each example."""
    return lambda: ClusterModel(images)


@pytest.fixture(scope="session")
def revision(images):
    return lambda deployment: render.revision(deployment, images=images)


@pytest.fixture(scope="session")
def pod_statuses():
    """Builders of pod statuses, for tests that play kubelet."""
    return {"running": running_status, "container": container_status}


@pytest.fixture(scope="session")
def eventually():
    """What a probe of a process answers once that is true, asked from outside any loop."""

    def eventually(probe, *, what, within_s):
        deadline = time.monotonic() + within_s
        while not (found := probe()):
            assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
            time.sleep(0.05)
        return found

    return eventually


@pytest.fixture(scope="session")
def pods_of():
    def pods_of(cluster, role):
        return sorted(
            name
            for name, body in cluster.of(Kind.POD).items()
            if body["metadata"]["labels"][names.LABEL_ROLE] == role
        )

    return pods_of


@pytest.fixture(scope="session")
def reported():
    """Builders of agents' reports."""
    return fake_reports


@dataclass(kw_only=True)
class World:
    """A converged deployment of one prefill and one decode pod, and how its status is made."""

    cluster: ClusterModel
    deployment: object
    views: dict = field(default_factory=dict)
    previous: DisaggDeploymentStatus = field(default_factory=DisaggDeploymentStatus)
    tally: Tally = field(default_factory=Tally)
    ledger: Ledger = field(default_factory=Ledger)
    now: float = NOW
    error: object = None

    @property
    def prefill(self):
        return next(name for name in self.cluster.of(Kind.POD) if "-prefill-" in name)

    @property
    def decode(self):
        return next(name for name in self.cluster.of(Kind.POD) if "-decode-" in name)

    def pod(self, name):
        return self.cluster.objects[Kind.POD, name]

    def tell(self, *reports):
        for report in reports:
            self.views[report.pod] = AgentView(report=report)

    def status(self):
        """One pass's status, which the next pass finds."""
        plan = self.cluster.decide(self.deployment)
        rows = self.previous.transfer.state_types if self.previous.transfer else ()
        self.tally = advance(self.tally, self.views, previous=rows, complete=True)
        self.previous = status_of(
            Moment(
                deployment=self.deployment,
                observed=self.cluster.observed(self.deployment),
                plan=plan,
                keys=self.cluster.keys,
                views=self.views,
                tally=self.tally,
                ledger=self.ledger,
                previous=self.previous,
                error=self.error,
                now=self.now,
            )
        )
        return self.previous

    def condition(self, kind):
        return next(item for item in self.status().conditions if item.type == kind)


@pytest.fixture
def world(cluster, deployment):
    found = World(cluster=cluster, deployment=deployment(model={"stateTypes": ["kv", "mamba"]}))
    cluster.views = found.views
    cluster.converge(found.deployment)
    return found
