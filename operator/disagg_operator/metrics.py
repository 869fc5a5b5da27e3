"""Counters of the operator's own work, as Prometheus text.

A hundred lines of exposition format would not earn a client library its place in the image; every
series with a closed set of labels is there at 0 from the start.
"""

from collections import Counter
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RESULTS = ("changed", "unchanged", "failed")


@dataclass(slots=True)
class Metrics:
    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    pass_seconds: float = 0.0
    resources: int = 0
    pollers: int = 0
    leads: bool = False

    def count_request(self, verb: str, *, resource: str, code: int) -> None:
        self.requests[(verb, resource, code)] += 1

    def count_pass(self, result: str, *, seconds: float) -> None:
        self.passes[result] += 1
        self.pass_seconds += seconds

    def requests_of(self, verb: str) -> int:
        return sum(count for (known, _, _), count in self.requests.items() if known == verb)


def exposition(metrics: Metrics) -> str:
    lines = _head("disagg_operator_reconcile_total", "counter", "Passes by result.")
    lines += [
        f'disagg_operator_reconcile_total{{result="{result}"}} {metrics.passes[result]}'
        for result in RESULTS
    ]
    lines += _head("disagg_operator_reconcile_seconds", "summary", "Time spent in passes.")
    lines += [
        f"disagg_operator_reconcile_seconds_sum {metrics.pass_seconds:.6f}",
        f"disagg_operator_reconcile_seconds_count {metrics.passes.total()}",
    ]
    lines += _head("disagg_operator_api_requests_total", "counter", "Requests to the API server.")
    lines += [
        f'disagg_operator_api_requests_total{{verb="{verb}",resource="{resource}",code="{code}"}}'
        f" {count}"
        for (verb, resource, code), count in sorted(metrics.requests.items())
    ]
    lines += _head("disagg_operator_resources", "gauge", "DisaggDeployments with a running loop.")
    lines += [f"disagg_operator_resources {metrics.resources}"]
    lines += _head("disagg_operator_report_pollers", "gauge", "Agents being polled for reports.")
    lines += [f"disagg_operator_report_pollers {metrics.pollers}"]
    lines += _head("disagg_operator_leader", "gauge", "1 while this process leads.")
    lines += [f"disagg_operator_leader {int(metrics.leads)}"]
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
