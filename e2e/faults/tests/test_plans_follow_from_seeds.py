"""The same seed is the same campaign; and any plan keeps within what the agents can be asked."""

from collections import Counter

import pytest

from disagg_faults.model import ITEM_BYTES, NAMES, content, cut, nbytes
from disagg_faults.plan import (
    ARENA_BYTES,
    DECODE,
    PODS,
    PREFILLS,
    STAGE_S,
    STANDING,
    Kind,
    make_plan,
)
from disagg_faults.relay import Corruption

SEEDS = range(40)


def test_a_seed_makes_the_same_plan_again_and_another_seed_another():
    assert make_plan(seed=7, requests=200) == make_plan(seed=7, requests=200)
    assert make_plan(seed=7, requests=200) != make_plan(seed=8, requests=200)


def test_a_longer_plan_begins_as_a_shorter_one():
    short, long = (make_plan(seed=3, requests=count) for count in (60, 200))
    assert long[: len(short) - 1] == short[:-1]


@pytest.mark.parametrize("count", [1, 60, 503])
def test_a_plan_has_as_many_requests_as_asked_each_with_a_room_of_its_own(count):
    requests = [r for step in make_plan(seed=1, requests=count) for r in step.requests]
    assert [request.room for request in requests] == list(range(1, count + 1))


def test_a_request_fits_the_arena_and_its_two_copies_come_close_together():
    for seed in SEEDS:
        for step in make_plan(seed=seed, requests=100):
            for request in step.requests:
                assert request.items.keys() == set(NAMES)
                assert nbytes(request.items) < ARENA_BYTES // 2
                assert abs(request.prefill_lag_s - request.decode_lag_s) < STAGE_S / 2
                assert request.hold_s <= STAGE_S - 1
                assert request.prefill in PREFILLS


def test_every_fault_and_every_corruption_and_empty_components_come_up():
    steps = [step for seed in SEEDS for step in make_plan(seed=seed, requests=100)]
    faults = [fault for step in steps for fault in step.faults]
    assert {fault.kind for fault in faults} == set(Kind) - {Kind.NOTHING}
    assert {fault.blow.corruption for fault in faults if fault.blow} == set(Corruption)
    assert {fault.percent for fault in faults if fault.kind is Kind.LOSE_PACKETS} > {100}
    assert any(len(step.faults) == 2 for step in steps)
    assert any(not step.faults for step in steps)
    requests = [request for step in steps for request in step.requests]
    for name in NAMES:
        assert {request.items[name] == 0 for request in requests} >= {True}
    assert {request.abort for request in requests} == {"", "prefill", "decode"}
    assert {request.whole for request in requests} == {True, False}
    assert any(0 < request.have.get("kv", 0) < request.items["kv"] for request in requests)
    assert Counter(request.prefill for request in requests).keys() == set(PREFILLS)


def test_a_fault_strikes_a_pod_that_can_have_it():
    for seed in SEEDS:
        for step in make_plan(seed=seed, requests=100):
            targets = [fault.target for fault in step.faults]
            assert len(set(targets)) == len(targets)
            for fault in step.faults:
                assert fault.target in PODS
                if fault.kind in {*STANDING, Kind.CORRUPT, Kind.LATE_BYTES}:
                    assert fault.target != DECODE


@pytest.mark.parametrize("chunk_bytes", [1, 5000, 1 << 30])
@pytest.mark.parametrize("have", [{}, {"kv": 3, "nsa": 7}])
def test_a_request_is_cut_into_chunks_that_cover_it_once_in_order(chunk_bytes, have):
    items = {**dict.fromkeys(NAMES, 0), "kv": 7, "nsa": 7, "mamba.conv": 1, "swa": 2}
    pieces = cut(items, chunk_bytes=chunk_bytes, have=have, room=5)
    assert pieces == cut(items, chunk_bytes=chunk_bytes, have=have, room=5)
    for name, total in items.items():
        own = [piece for piece in pieces if piece.component == name]
        assert own[0].first == have.get(name, 0)
        assert own[-1].first + own[-1].items == total
        assert [p.first for p in own[1:]] == [p.first + p.items for p in own[:-1]]
        assert [p.final for p in own] == [False] * (len(own) - 1) + [True]
        small = [p for p in own if p.items > 1 and p.items * ITEM_BYTES[name] > chunk_bytes]
        assert not small


def test_payloads_follow_from_seed_room_and_component_and_from_each_of_them():
    base = content(seed=1, room=1, component="kv", items=3)
    assert len(base) == 3 * ITEM_BYTES["kv"]
    assert base == content(seed=1, room=1, component="kv", items=3)
    others = (
        content(seed=2, room=1, component="kv", items=3),
        content(seed=1, room=2, component="kv", items=3),
        content(seed=1, room=1, component="swa", items=6),
    )
    assert all(other != base for other in others)
    items = [base[at : at + ITEM_BYTES["kv"]] for at in range(0, len(base), ITEM_BYTES["kv"])]
    assert len(set(items)) == 3
