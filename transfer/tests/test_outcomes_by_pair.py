"""What agents remember of each pair of pods, and for how many."""

import pytest

from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.agent.outcomes import Changes, Outcomes, Pods
from disagg_transfer.contract import MAX_PAIRS, Cause, Stage
from disagg_transfer.errors import TransferFailed

LATE = TransferFailed(Cause.TIMEOUT, stage=Stage.NOTIFY, detail="late", state_type="kv")


@pytest.fixture
def outcomes():
    return Outcomes(Metrics(()), Changes())


def succeed(outcomes, prefill, decode="d"):
    outcomes.succeeded("kv", nbytes=10, pods=Pods(prefill=prefill, decode=decode))


def fail(outcomes, prefill, decode="d"):
    pods = Pods(prefill=prefill, decode=decode)
    outcomes.failed(LATE, room=7, state_types=("kv", "mamba"), pods=pods)


def row_of(outcomes, state_type="kv"):
    return next(row for row in outcomes.rows if row.type == state_type)


def test_a_success_of_one_pair_leaves_the_failure_of_another_newest(outcomes):
    fail(outcomes, "p0")
    succeed(outcomes, "p1")
    failed, moved = row_of(outcomes).pairs
    assert (failed.prefill_pod, failed.decode_pod, failed.last_success) == ("p0", "d", None)
    assert (failed.last_failure.cause, failed.last_failure.room) == ("Timeout", 7)
    assert (moved.prefill_pod, moved.last_failure) == ("p1", None)
    succeed(outcomes, "p0")
    (healed, _) = row_of(outcomes).pairs
    assert healed.last_success >= healed.last_failure.time


def test_counts_are_those_of_all_pairs(outcomes):
    fail(outcomes, "p0")
    fail(outcomes, "p1")
    succeed(outcomes, "p1")
    row = row_of(outcomes)
    assert (row.transfers, row.bytes, row.failures, row.timeouts) == (1, 10, 2, 2)


def test_the_pairs_that_something_happened_to_last_are_kept(outcomes):
    fail(outcomes, "old")
    for number in range(MAX_PAIRS - 1):
        succeed(outcomes, f"p{number}")
    succeed(outcomes, "old")  # no longer the oldest
    succeed(outcomes, "one more")
    pods = {pair.prefill_pod for pair in row_of(outcomes).pairs}
    assert len(pods) == MAX_PAIRS
    assert {"old", "one more"} < pods
    assert "p0" not in pods
    assert row_of(outcomes).transfers == MAX_PAIRS + 1
