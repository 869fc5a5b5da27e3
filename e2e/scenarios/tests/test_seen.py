"""The predicates that the cluster waits stand on, against objects written by hand."""

from disagg_scenarios import seen


def resource(*conditions, generation=2, observed=2, rows=()):
    return {
        "metadata": {"generation": generation},
        "status": {
            "observedGeneration": observed,
            "conditions": list(conditions),
            "transfer": {"stateTypes": list(rows)},
        },
    }


READY = {"type": "Ready", "status": "True", "reason": "Serving", "message": "all well"}


def test_a_condition_of_the_current_generation_is_read():
    assert seen.condition(resource(READY), "Ready").reason == "Serving"
    assert seen.is_true(resource(READY), "Ready")


def test_a_condition_of_an_older_generation_says_nothing():
    assert not seen.is_true(resource(READY, observed=1), "Ready")


def test_an_absent_condition_is_unknown():
    assert seen.condition(resource(), "Ready").status == "Unknown"
    assert seen.condition({"metadata": {"generation": 1}}, "Ready").status == "Unknown"


def test_rows_are_found_by_type():
    found = resource(rows=[{"type": "kv", "bytes": 3}, {"type": "mamba", "bytes": 5}])
    assert seen.state_row(found, "mamba") == {"type": "mamba", "bytes": 5}
    assert seen.state_row(found, "swa") == {}
    assert seen.moved_bytes(found) == {"kv": 3, "mamba": 5}


def test_pods_are_those_of_the_role_and_revision():
    pods = [
        {
            "metadata": {
                "name": name,
                "labels": {"disagg.dev/role": role, "disagg.dev/revision": rev},
            }
        }
        for name, role, rev in (
            ("b", "prefill", "r2"),
            ("a", "prefill", "r2"),
            ("c", "prefill", "r1"),
            ("d", "decode", "r2"),
        )
    ]
    assert seen.pods_of(pods, "prefill", "r2") == ["a", "b"]
