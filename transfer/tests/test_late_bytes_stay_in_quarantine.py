"""An extent is never handed out while bytes may still arrive: for real, with NIXL's own late bytes.

The engine's mapping of the arena is what tells: it shows what lands, whoever believes it is over.
"""

import contextlib
import os
import signal
import urllib.error
from pathlib import Path

import pytest

from disagg_transfer.client import ArenaFull, TransferFailed
from disagg_transfer.local import LocalAgent

MIB = 1 << 20
ARENA = 300 * MIB
BIG = 200  # items of a MiB
PAGE = 4096


@contextlib.contextmanager
def stopped(agent):
    agent.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.process.send_signal(signal.SIGCONT)


@pytest.fixture
def late(tmp_path, kit):
    """Agents whose reads go by TCP in pieces and are given up after half a second."""
    limits = {"default": 30, "stages": {"wire": 0.5, "allocate": 0.5}}
    env = {"UCX_TLS": "tcp", "DISAGG_PREFLIGHT": "off"}  # half a second is for one read alone
    both = {"arena_bytes": ARENA, "timeouts": limits, "env": env}
    parts = (kit.part("kv", item_bytes=MIB),)
    with kit.agents(tmp_path, parts=parts, both={**both, "integrity": "off"}) as pair:
        pair.items = {"kv": BIG}
        yield pair


def arena_of(client):
    return client.arena


def not_ready(agent):
    with pytest.raises(urllib.error.HTTPError) as caught:
        agent.get("/readyz")
    with caught.value as answer:
        return answer.read().decode()


def move(decode, prefill, *, peer, room, items):
    """A whole request between two engines; the bytes are checked."""
    payload = os.urandom(items * MIB)
    prefill.begin(room)
    extent = prefill.reserve(room, len(payload), timeout_s=5)
    extent.view[:] = payload
    prefill.offer(room, "kv", extent, items=items, last=True)
    try:
        arrival = decode.pull(room, peer=peer, expect={"kv": items})
        assert bytes(arrival.payloads["kv"].view) == payload
        decode.release(room)
    finally:
        prefill.abort(room, "done")


def changed_pages(before, after):
    return [
        at for at in range(0, len(before), PAGE) if before[at : at + PAGE] != after[at : at + PAGE]
    ]


def test_a_stopped_peer_s_bytes_land_late_and_only_then_is_their_extent_free(
    late, tmp_path, rooms, kit
):
    room, arena = next(rooms), arena_of(late.d)
    payload = late.payloads()["kv"]
    with LocalAgent(tmp_path / "other", role="prefill", pod="other", arena_bytes=ARENA) as other:
        engine, peer = kit.connect(other, "prefill", late.parts), f"127.0.0.1:{other.control_port}"
        late.offer(room, {"kv": payload})
        pulled = kit.in_thread(late.pull, room)
        kit.until(lambda: arena[:PAGE] == payload[:PAGE], every_s=0.001)
        with stopped(late.prefill):
            with pytest.raises(TransferFailed, match="kv did not arrive whole") as caught:
                pulled.result(8)
            assert (caught.value.cause, caught.value.stage) == ("Timeout", "wire")
            before = bytes(arena[: BIG * MIB])
            assert not_ready(late.decode).startswith("LanePoisoned: lane ")
            assert f"{BIG * MIB} of them by a read from prefill" in not_ready(late.decode)
            # What is free is handed out; the rest is not, however long somebody waits for it.
            move(late.d, engine, peer=peer, room=next(rooms), items=20)
            with pytest.raises(ArenaFull, match=r"no room .* within 0.5 s"):
                move(late.d, engine, peer=peer, room=next(rooms), items=120)
            assert late.decode.report().arena.unsettled == BIG * MIB
        kit.until(lambda: late.decode.report().arena.used == 0, within_s=20)
        engine.close()
    after = bytes(arena[: BIG * MIB])
    landed_late = changed_pages(before, after)
    assert landed_late, "nothing landed late: the peer was stopped too late to show anything"
    assert all(after[at : at + PAGE] == payload[at : at + PAGE] for at in landed_late)
    kit.until(lambda: late.decode.report().ready)
    late.items = {"kv": 20}  # all of it within half a second is more than a busy machine promises
    late.round_trip(next(rooms))


def mappings_of_arenas(agent):
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    return sum("memfd:disagg-arena" in line for line in maps.splitlines())


def test_a_lane_that_stays_poisoned_is_made_anew_and_late_bytes_find_the_old_one(
    tmp_path, rooms, kit
):
    limits = {"default": 30, "stages": {"wire": 2.0}}
    # Samples would write into the arenas that are looked at here.
    env = {
        "UCX_TLS": "tcp",
        "DISAGG_PREFLIGHT": "off",
        "DISAGG_QUARANTINE": '{"remakeSeconds": 0.5}',
    }
    both = {"arena_bytes": ARENA, "timeouts": limits, "env": env, "integrity": "off"}
    parts = (kit.part("kv", item_bytes=MIB),)
    with (
        kit.agents(tmp_path, parts=parts, both=both) as pair,
        LocalAgent(tmp_path / "other", role="prefill", pod="other", arena_bytes=ARENA) as other,
    ):
        pair.items = {"kv": BIG}
        engine, peer = kit.connect(other, "prefill", parts), f"127.0.0.1:{other.control_port}"
        old, payload = arena_of(pair.d), pair.payloads()["kv"]
        room = next(rooms)
        pair.offer(room, {"kv": payload})
        pulled = kit.in_thread(pair.pull, room)
        kit.until(lambda: old[:PAGE] == payload[:PAGE], every_s=0.001)
        with stopped(pair.prefill):
            with pytest.raises(TransferFailed):
                pulled.result(8)
            kit.until(lambda: pair.decode.report().arena.unsettled == BIG * MIB)
            assert pair.d.lost.wait(5)
            before = bytes(old[: BIG * MIB])
            pair.d.close()
            pair.d = kit.connect(pair.decode, "decode", parts)
            new = arena_of(pair.d)
            assert pair.decode.report().arena.used == 0
            move(pair.d, engine, peer=peer, room=next(rooms), items=120)
            moved = bytes(new)
            assert pair.decode.get("/livez") == b"ok\n"
            assert mappings_of_arenas(pair.decode) == 2
        kit.until(lambda: mappings_of_arenas(pair.decode) == 1, within_s=20)
        assert changed_pages(before, bytes(old[: BIG * MIB])), "nothing landed late"
        assert bytes(new) == moved
        engine.close()
        pair.p.abort(room, "done")
        kit.until(lambda: pair.decode.report().ready)
        pair.round_trip(next(rooms))
