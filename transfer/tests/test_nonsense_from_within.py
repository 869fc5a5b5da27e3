"""Engines and peers that are let in and then talk nonsense harm nobody but themselves."""

import contextlib
import os
import socket
from random import Random

import pytest
from msgspec.structs import replace

from disagg_fuzz.examples import example
from disagg_fuzz.mutate import mutate
from disagg_transfer.codec import LENGTH, frame
from disagg_transfer.contract import Role, key_id
from disagg_transfer.engine_messages import CALLS, ENGINE_PROTOCOL, Register, RegisteredComponent
from disagg_transfer.local import LocalAgent
from disagg_transfer.protocol import (
    HANDSHAKE,
    MAC_BYTES,
    PROTOCOL_VERSION,
    SESSION,
    Hello,
    Ping,
    Proof,
    Seal,
    Transcript,
    Welcome,
)

FRAMES = 300


def registration(role):
    part = replace(example(RegisteredComponent), state_type="kv")
    changes = {"protocol": ENGINE_PROTOCOL, "role": role, "components": (part,)}
    first = {"rank": 0} if hasattr(Register, "rank") else {}
    return CALLS.encode(replace(example(Register), **changes, **first))


def registered(agent, role):
    """A connection of an engine that the agent has taken."""
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(30)
    door.connect(agent.socket_path)
    door.sendall(frame(registration(role)))
    (length,) = LENGTH.unpack(door.recv(LENGTH.size, socket.MSG_WAITALL))
    assert door.recv(length, socket.MSG_WAITALL)
    return door


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_engine_that_calls_nonsense_ends_itself_alone(tmp_path, kit, role):
    rng = Random(4)
    seeds = [CALLS.encode(example(kind)) for kind in CALLS.kinds if kind is not Register]
    limits = {"default": 0.2}
    with LocalAgent(tmp_path, role=role, timeouts=limits, arena_bytes=1 << 20) as agent:
        with contextlib.ExitStack() as stack:
            door = stack.enter_context(registered(agent, role))
            for number in range(FRAMES):
                seed = rng.choice(seeds)
                data = mutate(rng, seed)[: 64 << 10] if number % 3 else seed
                try:
                    door.sendall(frame(data))
                    door.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        while door.recv(65536):
                            pass
                    door.setblocking(True)
                except OSError:
                    door = stack.enter_context(registered(agent, role))
        kit.until(lambda: not agent.report().engine.connected)
        assert "Traceback" not in agent.log
        engine = kit.connect(agent, role, (kit.part("kv"),))
        kit.until(lambda: agent.report().engine.connected)
        kit.until(lambda: agent.report().arena.used == 0)
        engine.close()


KEY = b"local key for tests only"


def hello_of(role):
    mine = {"namespace": "local", "deployment": "local", "revision": "r1", "pod": "evil"}
    identity = replace(example(Hello).identity, **mine, role=role)
    return Hello(
        protocol=PROTOCOL_VERSION, identity=identity, nonce=os.urandom(32), keys=(key_id(KEY),)
    )


def read_frame(door):
    (length,) = LENGTH.unpack(door.recv(LENGTH.size, socket.MSG_WAITALL))
    return door.recv(length, socket.MSG_WAITALL)


def dialed(port):
    """A peer's connection to a prefill agent, and the seal of what it says."""
    door = socket.create_connection(("127.0.0.1", port), timeout=30)
    hello = hello_of(Role.DECODE)
    door.sendall(frame(HANDSHAKE.encode(hello)))
    script = Transcript(hello=hello, welcome=HANDSHAKE.decode(read_frame(door)))
    door.sendall(frame(HANDSHAKE.encode(Proof(proof=script.derive(KEY, b"dialer")))))
    return door, Seal(script.derive(KEY, b"dialer to listener"))


def accepted(door):
    """The same from the other side: a decode agent has dialed us."""
    hello = HANDSHAKE.decode(read_frame(door))
    bare = Welcome(
        protocol=PROTOCOL_VERSION,
        identity=hello_of(Role.PREFILL).identity,
        nonce=os.urandom(32),
        proof=b"",
    )
    script = Transcript(hello=hello, welcome=bare)
    proved = replace(bare, proof=script.derive(KEY, b"listener"))
    door.sendall(frame(HANDSHAKE.encode(proved)))
    read_frame(door)
    return Seal(script.derive(KEY, b"listener to dialer"))


def sealed(seal, message):
    """A frame with a right mac around any bytes."""
    whole = Seal(bytes(32)).close(Ping())
    head = len(whole) - LENGTH.size - MAC_BYTES - len(SESSION.encode(Ping()))
    payload = bytes(head) + message
    return frame(seal._mac(payload) + payload)


def babble(rng, door, seal):
    """Some twenty messages, most of them wrong, until the agent has had enough."""
    seeds = [SESSION.encode(example(kind)) for kind in SESSION.kinds]
    with contextlib.suppress(OSError):
        for number in range(20):
            seed = rng.choice(seeds)
            door.sendall(sealed(seal, mutate(rng, seed)[: 64 << 10] if number % 4 == 3 else seed))
        door.shutdown(socket.SHUT_WR)
        while door.recv(65536):
            pass


def test_a_decode_peer_that_talks_nonsense_harms_no_other(tmp_path, rooms, kit):
    rng = Random(7)
    with kit.agents(tmp_path, both={"timeouts": {"default": 2}}) as pair:
        for _ in range(20):
            door, seal = dialed(pair.prefill.control_port)
            with door:
                babble(rng, door, seal)
        pair.round_trip(next(rooms))
        assert "Traceback" not in pair.prefill.log
        assert pair.prefill.process.poll() is None
        kit.until(lambda: pair.prefill.report().arena.used == 0)


def test_a_prefill_peer_that_talks_nonsense_harms_no_other(tmp_path, rooms, kit):
    rng = Random(8)
    with socket.create_server(("127.0.0.1", 0)) as evil:
        evil.settimeout(30)
        with LocalAgent(tmp_path / "p", role="prefill") as prefill:
            peers = [f"127.0.0.1:{port}" for port in (evil.getsockname()[1], prefill.control_port)]
            with LocalAgent(tmp_path / "d", role="decode", peers=peers) as decode:
                pair = kit.pair(prefill, decode).connect()
                for _ in range(8):
                    door, _ = evil.accept()
                    with door:
                        door.settimeout(30)
                        babble(rng, door, accepted(door))
                pair.round_trip(next(rooms))
                assert "Traceback" not in decode.log
                assert decode.process.poll() is None
                pair.close()
