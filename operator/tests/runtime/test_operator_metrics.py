"""What Prometheus gets of the operator."""

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from disagg_operator.api.status import Condition, DisaggDeploymentStatus, RoleStatus
from disagg_operator.first_ready import ReadyWait
from disagg_operator.metrics import Histogram, Metrics, exposition

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
OWNER = ("team", "tiny")


def status(ready, *, generation=1):
    condition = Condition(
        type="Ready", status=ready, last_transition_time="", reason="R", message=""
    )
    roles = (RoleStatus(name="prefill", desired=3, ready=2, updated=1),)
    return DisaggDeploymentStatus(
        observed_generation=generation, conditions=(condition,), roles=roles
    )


def families(metrics):
    return {family.name: family for family in text_string_to_metric_families(exposition(metrics))}


def value(metrics, name, /, **labels):
    """Of one series; fails where there is none."""
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_fixed_series_are_there_at_0_from_the_start():
    metrics = Metrics()
    assert value(metrics, "disagg_operator_reconcile_total", result="failed") == 0
    assert value(metrics, "disagg_operator_group_restarts_total", role="decode") == 0
    assert value(metrics, "disagg_operator_reconcile_seconds_bucket", le="+Inf") == 0
    assert value(metrics, "disagg_deployment_time_to_ready_seconds_count") == 0


def test_the_page_names_every_metric_and_no_other():
    told = set(re.findall(r"^\| `(disagg_\w+)` \|", PAGE.read_text(), flags=re.MULTILINE))
    assert told == set(re.findall(r"^# TYPE (\S+)", exposition(Metrics()), flags=re.MULTILINE))


def test_a_histogram_counts_up_to_and_with_each_bound():
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(seconds)
    assert list(histogram.lines("h")) == [
        'h_bucket{le="1"} 2',
        'h_bucket{le="2"} 3',
        'h_bucket{le="+Inf"} 4',
        "h_sum 12.000000",
        "h_count 4",
    ]


@pytest.mark.parametrize(("truth", "number"), [("True", 1), ("False", 0), ("Unknown", -1)])
def test_conditions_and_groups_of_a_resource_are_gauges(truth, number):
    metrics = Metrics(statuses={OWNER: status(truth)})
    own = {"namespace": "team", "name": "tiny"}
    assert value(metrics, "disagg_deployment_condition", type="Ready", **own) == number
    groups = {
        state: value(metrics, "disagg_deployment_groups", role="prefill", state=state, **own)
        for state in ("desired", "ready", "updated")
    }
    assert groups == {"desired": 3, "ready": 2, "updated": 1}


def told(wait, *moments):
    """What a wait says at each (ready, generation, now); created at 100."""
    previous, found = DisaggDeploymentStatus(), []
    for ready, generation, now in moments:
        present = status(ready, generation=generation)
        found.append(wait.seconds(present, previous=previous, created_at=100.0, now=now))
        previous = present
    return found


def test_the_first_wait_begins_with_the_object():
    assert told(ReadyWait(), ("False", 1, 101.0), ("True", 1, 130.0), ("True", 1, 140.0)) == [
        None,
        30.0,
        None,
    ]


def test_a_changed_spec_begins_another_wait():
    moments = [("True", 1, 110.0), ("False", 2, 200.0), ("True", 2, 204.0)]
    assert told(ReadyWait(), *moments) == [10.0, None, 4.0]


def test_a_failure_after_ready_is_no_wait():
    moments = [("True", 1, 110.0), ("False", 1, 200.0), ("True", 1, 204.0)]
    assert told(ReadyWait(), *moments) == [10.0, None, None]


def test_what_began_before_this_process_is_not_measured():
    assert told(ReadyWait(), ("False", 5, 200.0), ("True", 5, 204.0)) == [None, None]
    ready = status("True")
    assert ReadyWait().seconds(ready, previous=ready, created_at=100.0, now=900.0) is None
