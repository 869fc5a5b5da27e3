"""What the oracle lets pass and what it does not, without any process."""

import dataclasses

import pytest

from disagg_faults.model import NAMES, STATE_TYPES, cut
from disagg_faults.oracle import Counted, Seen, judge, judge_counts, patience_s
from disagg_faults.orders import Ending, Order, Outcome, read_order, read_outcome
from disagg_faults.plan import Fault, Kind, Request, Step
from disagg_faults.relay import Blow, Corruption, Direction

ITEMS = dict.fromkeys(NAMES, 1) | {"none": 0, "swa": 0}
REQUEST = Request(
    room=1,
    prefill="prefill-0",
    items=ITEMS,
    prefill_lag_s=0.1,
    decode_lag_s=0.2,
    chunk_bytes=1 << 20,
    pace_s=0.0,
    have={},
    hold_s=0.0,
    whole=False,
    asks=False,
    abort="",
)
EXACT = Outcome(room=1, ending=Ending.EXACT, began_at=10.0, ended_at=11.0)


def failed(cause, *, stage="wire", ended_at=11.0):
    return Outcome(
        room=1,
        ending=Ending.FAILED,
        cause=cause,
        stage=stage,
        detail="words",
        began_at=10.0,
        ended_at=ended_at,
    )


def violations(prefill, decode, *faults, request=REQUEST, struck_at=None):
    step = Step(number=1, requests=(request,), faults=faults)
    seen = [Seen(request=request, prefill=prefill, decode=decode)]
    return list(judge(step, seen, struck_at=struck_at or {}))


def fault(kind, target="prefill-0", **fields):
    return Fault(kind=kind, target=target, **fields)


def test_exact_on_both_sides_is_right():
    assert violations(EXACT, EXACT) == []


def test_wrong_bytes_are_never_right():
    wrong = dataclasses.replace(EXACT, ending=Ending.WRONG)
    for kind in Kind:
        words = violations(EXACT, wrong, fault(kind, state_type="kv", lasting_s=9))
        assert "room 1 (prefill-0): decode took wrong bytes for good" in words


def test_a_request_that_did_not_end_is_a_violation_whatever_the_fault():
    (words,) = violations(EXACT, None, fault(Kind.KILL_AGENT))
    assert "decode did not end within" in words
    (words,) = violations(None, None, fault(Kind.KILL_AGENT))
    assert "prefill and decode did not end within" in words


def test_without_a_fault_nothing_may_fail():
    words = violations(EXACT, failed("PeerLost"))
    assert "decode failed with PeerLost in wire: words" in words[0]
    assert "prefill ended exact, decode failed" in words[1]


def test_a_fault_at_the_other_prefill_pod_excuses_nothing():
    lost = failed("PeerLost")
    assert violations(lost, lost, fault(Kind.KILL_AGENT, "prefill-1"))
    assert not violations(lost, lost, fault(Kind.KILL_AGENT, "prefill-0"))
    assert not violations(lost, lost, fault(Kind.KILL_AGENT, "decode-0"))


def test_a_stop_shorter_than_every_deadline_excuses_nothing():
    late = failed("Timeout")
    assert violations(late, late, fault(Kind.STOP_AGENT, lasting_s=0.7))
    assert not violations(late, late, fault(Kind.STOP_AGENT, lasting_s=4))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (Kind.KILL_AGENT, "DigestMismatch"),
        (Kind.STOP_AGENT, "ProtocolError"),
        (Kind.KILL_ENGINE, "PeerLost"),
        (Kind.LOSE_PACKETS, "AuthenticationFailed"),
        (Kind.WITHHOLD, "MissingState"),
        (Kind.ZERO, "Timeout"),
    ],
)
def test_a_cause_that_the_fault_does_not_explain_is_a_violation(kind, cause):
    failure = failed(cause)
    (words, *_) = violations(failure, failure, fault(kind, state_type="kv", lasting_s=4))
    assert "causes that its faults explain" in words


def test_withheld_duplicated_and_wiped_requests_must_fail():
    for kind, cause in (
        (Kind.WITHHOLD, "Timeout"),
        (Kind.DUPLICATE, "DuplicatePayload"),
        (Kind.ZERO, "DigestMismatch"),
    ):
        struck = fault(kind, state_type="kv")
        assert "withheld, offered twice or wiped" in violations(EXACT, EXACT, struck)[0]
        assert violations(failed(cause), failed(cause), struck) == []


def test_a_last_offer_said_twice_may_come_too_late_to_harm():
    last = cut(ITEMS, chunk_bytes=REQUEST.chunk_bytes, have={}, room=REQUEST.room)[-1]
    for state_type in ("kv", "mamba", "nsa"):
        spared = STATE_TYPES[last.component] == state_type
        struck = fault(Kind.DUPLICATE, state_type=state_type)
        assert (violations(EXACT, EXACT, struck) == []) is spared


def test_what_need_not_come_may_be_wiped_or_withheld():
    held = dataclasses.replace(REQUEST, have={"kv": 1})
    for kind in (Kind.ZERO, Kind.WITHHOLD):
        assert violations(EXACT, EXACT, fault(kind, state_type="swa")) == []  # it has no items
        assert violations(EXACT, EXACT, fault(kind, state_type="kv"), request=held) == []
        assert violations(EXACT, EXACT, fault(kind, state_type="nsa"), request=held)


def test_a_failure_is_told_to_the_other_side_soon():
    struck = fault(Kind.WITHHOLD, state_type="kv")
    late = failed("Timeout", ended_at=14.0)
    assert violations(late, failed("Timeout", ended_at=12.5), struck) == []
    (words,) = violations(late, failed("Timeout", ended_at=11.0), struck)
    assert "one side knew of its failure 3.0 s before the other" in words


@pytest.mark.parametrize("kind", [Kind.KILL_AGENT, Kind.KILL_ENGINE])
@pytest.mark.parametrize("target", ["prefill-0", "decode-0"])
def test_a_kill_is_known_to_the_other_side_soon(kind, target):
    kill, died = fault(kind, target), dataclasses.replace(EXACT, ending=Ending.DIED)

    def told(ended_at, *, stage="wire", kill=kill):
        other = failed("EngineLost", stage=stage, ended_at=ended_at)
        sides = (died, other) if target == "prefill-0" else (other, died)
        words = violations(*sides, fault(Kind.KILL_ENGINE, target), struck_at={kill: 11.0})
        return [word for word in words if "it was told" in word]

    assert told(12.9) == []
    assert told(14.0) == [f"room 1 (prefill-0): it was told 3.0 s after {kind} {target}"]
    assert told(14.0, stage="bootstrap") == []  # it had not met the other side
    assert told(14.0, kill=fault(kind, "prefill-1")) == []
    assert told(14.0, kill=fault(Kind.STOP_AGENT, target)) == []


def test_who_comes_late_may_hear_late():
    late = dataclasses.replace(REQUEST, prefill_lag_s=4.0)
    struck = fault(Kind.WITHHOLD, state_type="kv")
    told = failed("Timeout", ended_at=14.5)
    assert violations(told, failed("Timeout", ended_at=11.0), struck, request=late) == []


def test_a_request_given_up_fails_as_aborted_and_never_arrives():
    aborted = failed("Aborted")
    for role in ("prefill", "decode"):
        given_up = dataclasses.replace(REQUEST, abort=role)
        assert violations(aborted, aborted, request=given_up) == []
        assert violations(aborted, EXACT, request=given_up)
    assert violations(aborted, aborted)
    nothing = dataclasses.replace(REQUEST, abort="decode", items=dict.fromkeys(NAMES, 0))
    assert violations(EXACT, EXACT, request=nothing) == []  # there is no chunk to give up at


def test_only_a_killed_engine_may_die():
    died = dataclasses.replace(EXACT, ending=Ending.DIED)
    lost = failed("EngineLost")
    assert violations(died, lost, fault(Kind.KILL_ENGINE)) == []
    assert "prefill died of itself" in violations(died, lost, fault(Kind.KILL_AGENT))[0]


def test_patience_grows_with_what_the_step_does():
    stall = Blow(
        corruption=Corruption.STALL, direction=Direction.TO_DECODE, after=0, bit=0, stall_s=2.0
    )

    def patience(*faults):
        return patience_s(Step(number=1, requests=(REQUEST,), faults=faults))

    assert patience() < patience(fault(Kind.STOP_AGENT, lasting_s=4))
    assert patience(fault(Kind.CORRUPT, blow=stall)) == pytest.approx(patience() + 2)
    assert patience(fault(Kind.KILL_ENGINE)) == pytest.approx(patience() + 10)


def counted(kv, *, incarnation="one", failures=0):
    transfers = {"kv": kv, "mamba": 2 * kv, "none": kv, "nsa": kv, "swa": kv}
    return Counted(incarnation=incarnation, transfers=transfers, failures={"kv": failures})


def test_an_agent_must_have_counted_what_its_engine_saw():
    seen = [Seen(request=REQUEST, prefill=EXACT, decode=EXACT)]

    def told(kv, *, pod="decode-0", incarnation="one"):
        after = counted(kv, incarnation=incarnation)
        return list(judge_counts(before=counted(5), after=after, seen=seen, pod=pod))

    assert told(6) == []
    assert told(6, pod="prefill-0") == []
    assert "its engine saw" in told(5)[0]
    assert "its engine saw" in told(7)[0]
    assert told(0, incarnation="two") == []
    assert told(5, pod="prefill-1") == []


def test_what_arrived_whole_and_was_not_taken_may_have_been_counted():
    for unseen in (dataclasses.replace(EXACT, ending=Ending.DIED), failed("T", stage="scatter")):
        seen = [Seen(request=REQUEST, prefill=failed("EngineLost"), decode=unseen)]
        for kv, words in ((5, 0), (6, 0), (7, 1)):
            after = counted(kv, failures=1)
            told = judge_counts(before=counted(5), after=after, seen=seen, pod="decode-0")
            assert len(list(told)) == words


def test_an_agent_must_have_counted_the_failures_that_its_engine_saw_and_no_others():
    def told(decode, failures, pod="decode-0"):
        seen = [Seen(request=REQUEST, prefill=EXACT, decode=decode)]
        after = counted(6 if decode is EXACT or pod != "decode-0" else 5, failures=failures)
        return list(judge_counts(before=counted(5), after=after, seen=seen, pod=pod))

    assert told(EXACT, 0) == told(failed("PeerLost"), 1) == told(failed("PeerLost"), 4) == []
    assert told(failed("PeerLost"), 0) == ["decode-0 counts 0 failures, its engine saw 1"]
    assert told(failed("AgentUnavailable"), 0) == []  # no agent was there to count it
    assert "every request was exact" in told(EXACT, 2)[0]
    assert "every request was exact" in told(EXACT, 2, pod="prefill-0")[0]


def test_lines_between_the_campaign_and_its_engines_say_the_same_on_both_ends():
    order = Order(room=3, items=ITEMS, chunk_bytes=9, have={"kv": 1}, peer="h:1", lag_s=0.5)
    assert read_order(order.to_line()) == order
    assert read_outcome(failed("Timeout").to_line()) == failed("Timeout")
