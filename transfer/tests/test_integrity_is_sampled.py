"""Sampled integrity: both sides know which chunks carry a digest, and check those."""

import pytest

from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import Integrity
from disagg_transfer.integrity import Sampling

HALF = Sampling(mode=Integrity.SAMPLED, rate=0.5)


def checked(sampling, rooms):
    return [sampling.checks(room=room, component="kv", chunk=0) for room in rooms]


def test_the_rate_is_the_share_of_chunks_and_their_names_decide():
    tenth = Sampling(mode=Integrity.SAMPLED, rate=0.1)
    found = checked(tenth, range(10_000))
    assert 900 < sum(found) < 1100
    assert found == checked(Sampling(mode=Integrity.SAMPLED, rate=0.1), range(10_000))
    half = checked(HALF, range(10_000))
    assert all(more for less, more in zip(found, half, strict=True) if less)
    assert {HALF.checks(room=1, component="kv", chunk=chunk) for chunk in range(64)} == {
        True,
        False,
    }


def test_always_and_off_need_no_rate():
    assert all(checked(Sampling(mode=Integrity.ALWAYS, rate=0.1), range(100)))
    assert not any(checked(Sampling(mode=Integrity.OFF, rate=0.1), range(100)))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, kit):
    both = {"integrity": "sampled", "env": {"DISAGG_INTEGRITY_RATE": "0.5"}, "faults": True}
    parts = (kit.part("kv"), kit.part("mamba", name="mamba.conv"))
    with kit.agents(tmp_path_factory.mktemp("sampled"), parts=parts, both=both) as pair:
        pair.items = {"kv": 3, "mamba.conv": 1}
        yield pair


def rooms_where(rooms, *, kv):
    return (room for room in rooms if HALF.checks(room=room, component="kv", chunk=0) is kv)


def test_sampled_or_not_a_request_arrives(sampled, rooms):
    for kv in (True, False):
        sampled.round_trip(next(rooms_where(rooms, kv=kv)))


def test_a_wiped_chunk_is_found_where_it_carries_a_digest(sampled, rooms):
    sampled.prefill.fault("zero", "kv")
    room = next(rooms_where(rooms, kv=True))
    sampled.offer(room, sampled.payloads())
    with pytest.raises(TransferFailed, match=r"DigestMismatch.*component kv, chunk 0"):
        sampled.pull(room)
    with pytest.raises(TransferFailed, match="DigestMismatch"):
        sampled.p.wait_released(room, 1)
    room = next(rooms_where(rooms, kv=False))
    sampled.offer(room, sampled.payloads())
    assert set(bytes(sampled.pull(room).payloads["kv"].view)) == {0}
    sampled.d.release(room)
    sampled.p.wait_released(room, 1)
    sampled.prefill.fault("lift")


@pytest.mark.parametrize("prefill", [{"integrity": "off"}, {"integrity": "sampled"}])
def test_a_digest_that_prefill_leaves_out_is_a_mismatch(tmp_path, rooms, kit, prefill):
    with kit.agents(tmp_path, parts=(kit.part("kv"),), prefill=prefill) as pair:
        pair.items = {"kv": 1}
        tenth = Sampling(mode=Integrity.SAMPLED, rate=0.1)
        room = next(r for r in rooms if not tenth.checks(room=r, component="kv", chunk=0))
        pair.offer(room, pair.payloads())
        with pytest.raises(TransferFailed, match=r"DigestMismatch.*its integrity check is off"):
            pair.pull(room)
