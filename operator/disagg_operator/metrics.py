"""What the operator counts of its own work and tells of its resources, as Prometheus text.

Two hundred lines of exposition format would not earn a client library its place in the image.
Every series with a closed set of labels is there at 0 from the start; the others have one label
set for each resource that there is, and go with it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from disagg_operator import names
from disagg_operator.api.status import DisaggDeploymentStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RESULTS = ("changed", "unchanged", "failed")
# Upper bounds in seconds. A pass is some milliseconds of work and up to a few requests; a resource
# is Ready after seconds with tiny models and after half an hour with large ones.
PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
READY_BUCKETS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
# What a condition's status is as a number.
TRUTH = {"True": 1, "False": 0, "Unknown": -1}


class Histogram:
    """Observations by upper bound, in seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        return sum(self._counts)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            label = bound if isinstance(bound, str) else f"{bound:g}"
            yield f'{name}_bucket{{le="{label}"}} {total}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {total}"


@dataclass(slots=True)
class Metrics:
    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    pass_seconds: Histogram = field(default_factory=lambda: Histogram(PASS_BUCKETS))
    ready_seconds: Histogram = field(default_factory=lambda: Histogram(READY_BUCKETS))
    group_restarts: Counter[str] = field(default_factory=Counter)
    # The newest status of each resource, by namespace and name.
    statuses: dict[tuple[str, str], DisaggDeploymentStatus] = field(default_factory=dict)
    resources: int = 0
    queued: int = 0
    pollers: int = 0
    refused_watches: int = 0
    leads: bool = False

    def count_request(self, verb: str, *, resource: str, code: int) -> None:
        self.requests[(verb, resource, code)] += 1

    def requests_of(self, verb: str) -> int:
        return sum(count for (known, _, _), count in self.requests.items() if known == verb)


def exposition(metrics: Metrics) -> str:
    return "\n".join((*_own_work(metrics), *_of_resources(metrics))) + "\n"


def _own_work(metrics: Metrics) -> Iterator[str]:
    name = "disagg_operator_reconcile_total"
    yield from _head(name, "counter", "Passes by result.")
    for result in RESULTS:
        yield f'{name}{{result="{result}"}} {metrics.passes[result]}'
    name = "disagg_operator_reconcile_seconds"
    yield from _head(name, "histogram", "Duration of passes.")
    yield from metrics.pass_seconds.lines(name)
    name = "disagg_operator_api_requests_total"
    yield from _head(name, "counter", "Requests to the API server.")
    for (verb, resource, code), count in sorted(metrics.requests.items()):
        yield f'{name}{{verb="{verb}",resource="{resource}",code="{code}"}} {count}'
    yield from _gauge("resources", "DisaggDeployments with a running loop.", metrics.resources)
    yield from _gauge("queue_depth", "Resources that wait for a pass.", metrics.queued)
    yield from _gauge("report_pollers", "Agents being polled for reports.", metrics.pollers)
    yield from _gauge(
        "refused_watches",
        "Kinds that the operator may not list or watch, counted by namespace.",
        metrics.refused_watches,
    )
    yield from _gauge("leader", "1 while this process leads.", int(metrics.leads))
    name = "disagg_operator_group_restarts_total"
    yield from _head(name, "counter", "Groups that were replaced because a member was lost.")
    for role in names.ROLES:
        yield f'{name}{{role="{role}"}} {metrics.group_restarts[role]}'


def _of_resources(metrics: Metrics) -> Iterator[str]:
    name = "disagg_deployment_time_to_ready_seconds"
    yield from _head(name, "histogram", "From creation, or a changed spec, to Ready.")
    yield from metrics.ready_seconds.lines(name)
    known = sorted(metrics.statuses.items())
    name = "disagg_deployment_condition"
    yield from _head(name, "gauge", "Conditions: 1 True, 0 False, -1 Unknown.")
    for (namespace, owner), status in known:
        for found in status.conditions:
            labels = f'namespace="{namespace}",name="{owner}",type="{found.type}"'
            yield f"{name}{{{labels}}} {TRUTH[found.status]}"
    name = "disagg_deployment_groups"
    yield from _head(name, "gauge", "Groups of a role that are desired, ready, of the newest kind.")
    for (namespace, owner), status in known:
        for role in status.roles:
            labels = f'namespace="{namespace}",name="{owner}",role="{role.name}"'
            for state in ("desired", "ready", "updated"):
                yield f'{name}{{{labels},state="{state}"}} {getattr(role, state)}'


def _gauge(name: str, text: str, value: int) -> Iterator[str]:
    name = f"disagg_operator_{name}"
    yield from _head(name, "gauge", text)
    yield f"{name} {value}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
