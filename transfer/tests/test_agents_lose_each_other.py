"""Processes that die or freeze in the middle of a request."""

import signal
import socket
import struct
import time

import pytest

from disagg_transfer.client import TransferFailed
from disagg_transfer.codec import LENGTH, frame
from disagg_transfer.contract import Role, key_id
from disagg_transfer.local import LocalAgent
from disagg_transfer.protocol import (
    HANDSHAKE,
    PROTOCOL_VERSION,
    Hello,
    Identity,
    Proof,
    Transcript,
)


def failure_of(future, within_s):
    with pytest.raises(TransferFailed) as caught:
        future.result(within_s)
    return caught.value


def test_a_killed_prefill_agent_fails_decode_within_a_second(tmp_path, rooms, kit):
    with kit.agents(tmp_path) as pair:
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        pair.p.begin(room)
        kit.until(lambda: pair.leased(room))
        pair.prefill.process.kill()
        killed = time.monotonic()
        failure = failure_of(pulled, 2)
        assert time.monotonic() - killed < 1
        assert (failure.cause, failure.peer_pod) == ("PeerLost", "prefill")
        assert pair.p.lost.wait(1)
        with pytest.raises(TransferFailed, match="EngineLost"):
            pair.p.begin(1)

        pair.prefill.restart()
        pair.p.close()
        pair.p = kit.connect(pair.prefill, "prefill", pair.parts)
        pair.round_trip(next(rooms))


def test_a_killed_decode_agent_fails_prefill_within_a_second(tmp_path, rooms, kit):
    with kit.agents(tmp_path) as pair:
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        pair.p.begin(room)
        waiting = kit.in_thread(pair.p.wait_released, room, 10)
        kit.until(lambda: pair.leased(room))
        pair.decode.process.kill()
        failure = failure_of(waiting, 1)
        assert (failure.cause, failure.stage, failure.peer_pod) == ("PeerLost", "queue", "decode")
        assert failure_of(pulled, 1).cause == "EngineLost"


@pytest.mark.parametrize("killed", ["prefill", "decode"])
def test_what_had_arrived_is_no_failure_of_its_type_when_an_agent_is_killed(
    tmp_path, rooms, kit, killed
):
    with kit.agents(tmp_path, both={"faults": True}) as pair:
        pair.prefill.fault("withhold", "mamba")
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        pair.offer(room, pair.payloads())
        waiting = kit.in_thread(pair.p.wait_released, room, 10)
        late = "mamba.conv missing, mamba.temporal missing"
        kit.until(lambda: [row["components"] for row in pair.decode.transfers()] == [late])
        kit.until(lambda: "swa pulled" in pair.prefill.transfers()[0]["components"])
        getattr(pair, killed).process.kill()
        survivor, call = (pair.decode, pulled) if killed == "prefill" else (pair.prefill, waiting)
        assert failure_of(call, 2).cause == "PeerLost"
        failed = {row.type: row.failures for row in survivor.report().state_types}
        assert failed == {"kv": 0, "mamba": 1, "none": 0, "nsa": 0, "swa": 0}


def test_a_frozen_prefill_agent_is_lost_by_its_silence(tmp_path, rooms, kit):
    with kit.agents(tmp_path) as pair:
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        kit.until(lambda: pair.claimed(room))
        pair.prefill.process.send_signal(signal.SIGSTOP)
        try:
            failure = failure_of(pulled, 6)
        finally:
            pair.prefill.process.send_signal(signal.SIGCONT)
        assert failure.cause == "PeerLost"
        assert "no heartbeat" in failure.detail


def test_an_engine_that_dies_is_told_to_the_other_side(tmp_path, rooms, kit):
    with kit.agents(tmp_path) as pair:
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        pair.p.begin(room)
        extent = pair.p.reserve(room, 4096, timeout_s=1)
        kit.until(lambda: pair.leased(room))
        pair.p.close()
        failure = failure_of(pulled, 1)
        assert (failure.cause, failure.peer_pod) == ("EngineLost", "prefill")
        report = kit.until(lambda: (r := pair.prefill.report()).engine.connected is False and r)
        assert (report.ready, report.not_ready_reason) == (False, "EngineNotRegistered")
        # The view may still be written, whoever is registered now, until nobody has it any more.
        assert report.arena.unsettled == extent.view.nbytes
        pair.p = kit.connect(pair.prefill, "prefill", pair.parts)
        pair.round_trip(next(rooms))
        assert pair.prefill.report().arena.unsettled == extent.view.nbytes
        del extent
        kit.until(lambda: pair.prefill.report().arena.used == 0)

        room = next(rooms)
        pair.offer(room, pair.payloads())
        pair.pull(room)
        pair.d.close()
        with pytest.raises(TransferFailed, match=r"EngineLost in stage scatter"):
            pair.p.wait_released(room, 1)
        assert pair.decode.report().arena.used == 0

        pair.d = kit.connect(pair.decode, "decode", pair.parts)
        room = next(rooms)
        pulled = kit.in_thread(pair.pull, room)
        pair.p.begin(room)
        kit.until(lambda: pair.leased(room))
        waiting = kit.in_thread(pair.p.wait_released, room, 10)
        pair.d.close()
        assert failure_of(waiting, 1).cause == failure_of(pulled, 1).cause == "EngineLost"


def test_layouts_that_differ_are_listed_on_both_sides_and_fail_at_once(tmp_path, rooms, kit):
    limits = {"timeouts": {"default": 30}}
    with kit.agents(tmp_path, both=limits) as pair:
        pair.d.close()
        other = tuple(
            kit.part("kv", item_bytes=8192) if part.name == "kv" else part
            for part in pair.parts
            if part.name != "mamba.conv"
        )
        pair.d = kit.connect(pair.decode, "decode", other)
        for agent in (pair.prefill, pair.decode):
            rows = kit.until(lambda agent=agent: agent.report().layout_mismatch)
            assert {(r.field, r.prefill, r.decode) for r in rows} == {
                ("components[kv].itemBytes", "4096", "8192"),
                ("components[mamba.conv]", "state type mamba", "(absent)"),
            }
            assert {(r.prefill_pod, r.decode_pod) for r in rows} == {("prefill", "decode")}
        assert pair.decode.report().not_ready_reason == "LayoutMismatch"
        assert pair.prefill.report().ready
        items = {name: count for name, count in pair.items.items() if name != "mamba.conv"}
        room = next(rooms)
        pair.p.begin(room)
        failure = failure_of(kit.in_thread(pair.pull, room, items), 1)
        assert failure.cause == "LayoutMismatch"
        with pytest.raises(TransferFailed, match="LayoutMismatch"):
            pair.p.wait_released(room, 1)  # decode has never claimed it, and tells all the same
        assert "components[kv].itemBytes: prefill has 4096, decode has 8192" in failure.detail


def test_strangers_are_refused_counted_and_change_nothing(pair, rooms):
    before = pair.prefill.report()
    port = pair.prefill.control_port
    for reason, attempt in (
        ("protocol", lambda plain: plain.sendall(b"GET / HTTP/1.1\r\n\r\n")),
        ("protocol", lambda plain: plain.sendall(struct.pack("!I", 2) + b"\xc1\xc1")),
        ("authentication", lambda plain: knock(plain, key=b"not the key")),
        ("authentication", lambda plain: knock(plain, revision="r2")),
        ("authentication", lambda plain: knock(plain, role=Role.PREFILL)),
    ):
        series = f'refusals_total{{reason="{reason}"}}'
        count = metric(pair.prefill, series)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            attempt(plain)
            assert plain.recv(1) == b""  # turned away
        assert metric(pair.prefill, series) == count + 1
    after = pair.prefill.report()
    assert "stranger" not in {peer.pod for peer in after.peers}
    assert (after.arena, after.state_types) == (before.arena, before.state_types)
    pair.round_trip(next(rooms))


def knock(plain, *, key=b"local key for tests only", **wrong):
    """A peer that would pass but for what is wrong with it."""
    us = {
        "namespace": "local",
        "deployment": "local",
        "revision": "r1",
        "role": Role.DECODE,
        "pod": "stranger",
        "incarnation": "1",
        "group": "0",
        "node": 0,
        "ranks": 1,
    }
    us = Identity(**{**us, **wrong})
    hello = Hello(protocol=PROTOCOL_VERSION, identity=us, nonce=bytes(32), keys=(key_id(key),))
    plain.sendall(frame(HANDSHAKE.encode(hello)))
    (length,) = LENGTH.unpack(plain.recv(LENGTH.size, socket.MSG_WAITALL))
    welcome = HANDSHAKE.decode(plain.recv(length, socket.MSG_WAITALL))
    proof = Transcript(hello=hello, welcome=welcome).derive(key, b"dialer")
    plain.sendall(frame(HANDSHAKE.encode(Proof(proof=proof))))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"key": b"another key 123456"}, "mount the key Secret of the same revision"),
        ({"revision": "r2"}, "revision: peer prefill has 'r1', this agent 'r2'"),
    ],
)
def test_a_decode_agent_that_is_no_peer_learns_why(pair, tmp_path, rooms, kit, wrong, told):
    with LocalAgent(tmp_path, role="decode", pod="x", **wrong) as other:
        engine = kit.connect(other, "decode", kit.every_type)
        call = kit.in_thread(engine.pull, next(rooms), peer=pair.peer, expect=pair.items)
        failure = failure_of(call, 5)
        assert failure.cause == "AuthenticationFailed"
        assert told in failure.detail
        engine.close()


def metric(agent, ending):
    for line in agent.get("/metrics").decode().splitlines():
        if line.split(" ")[0].endswith(ending):
            return float(line.split()[-1])
    raise AssertionError(f"no series ends with {ending}")
