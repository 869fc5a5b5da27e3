"""Strangers at every door of real agents: refused, few at a time, counted; requests go on beside."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

import pytest
from msgspec.structs import replace

from disagg_fuzz.examples import example
from disagg_transfer.client import TransferFailed
from disagg_transfer.codec import LENGTH, frame
from disagg_transfer.contract import Role
from disagg_transfer.local import LocalAgent
from disagg_transfer.protocol import (
    HANDSHAKE,
    PROTOCOL_VERSION,
    Hello,
    Proof,
    Transcript,
)

HTTP_HEAD = b"GET /readyz HTTP/1.1\r\nHost: x\r\n"


def metric(agent, series):
    for line in agent.get("/metrics").decode().splitlines():
        if line.split(" ")[0].endswith(series):
            return float(line.split()[-1])
    raise AssertionError(f"no series ends with {series}")


def memory_of(agent):
    """Resident bytes."""
    numbers = Path(f"/proc/{agent.process.pid}/statm").read_text().split()
    return int(numbers[1]) * os.sysconf("SC_PAGE_SIZE")


def files_of(agent):
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def knocking(port, count, words=b""):
    """Connections that say `words` and no more."""
    with contextlib.ExitStack() as stack:
        doors = []
        for _ in range(count):
            door = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            with contextlib.suppress(OSError):  # turned away while it spoke
                door.sendall(words)
            doors.append(door)
        yield doors


def gone(door):
    """Whether the agent has closed it; nothing it had sent is unread here."""
    door.setblocking(False)
    try:
        return door.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.fixture
def traffic(pair, rooms):
    """Requests one after another while the test attacks; each must be exact."""
    stop, done, failures = threading.Event(), [], []

    def run():
        while not stop.is_set():
            try:
                pair.round_trip(next(rooms))
                done.append(time.monotonic())
            except (TransferFailed, AssertionError) as error:
                failures.append(error)
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield done
    stop.set()
    thread.join(30)
    assert not failures, failures
    assert done


def goes_on(kit, done):
    """Two whole requests from now."""
    before = len(done)
    kit.until(lambda: len(done) >= before + 2)


@pytest.mark.parametrize("words", [b"", struct.pack("!I", 4000), struct.pack("!I", 100) + b"\x92"])
def test_five_hundred_who_say_little_cost_little_and_keep_nobody_out(pair, traffic, kit, words):
    agent = pair.prefill
    crowded = 'control_refusals_total{reason="crowded"}'
    before, files, memory = metric(agent, crowded), files_of(agent), memory_of(agent)
    with knocking(agent.control_port, 500, words) as doors:
        kit.until(lambda: sum(gone(door) for door in doors) >= 436)
        assert metric(agent, crowded) == before + 436  # 64 seats
        assert files_of(agent) <= files + 64 + 4
        assert memory_of(agent) < memory + (8 << 20)
        goes_on(kit, traffic)
        assert agent.report().ready
        # A peer comes all the same: its handshake is short, and the oldest makes room.
        with contextlib.ExitStack() as more:

            def meanwhile():
                more.enter_context(knocking(agent.control_port, 40, words))

            assert shakes_hands(agent.control_port, meanwhile=meanwhile)
    kit.until(lambda: files_of(agent) <= files + 4)


def test_a_handshake_drop_by_drop_ends_at_its_deadline(pair, traffic, kit):
    timeouts = 'control_refusals_total{reason="timeout"}'
    before = metric(pair.prefill, timeouts)
    hello = frame(HANDSHAKE.encode(hello_of(Role.DECODE)))
    started = time.monotonic()
    with knocking(pair.prefill.control_port, 1) as (door,):
        drops = iter(hello)
        while not gone(door):
            with contextlib.suppress(OSError):
                door.send(bytes([next(drops)]))
            threading.Event().wait(0.1)
            assert time.monotonic() < started + 9
        assert time.monotonic() > started + 4
    assert metric(pair.prefill, timeouts) == before + 1
    goes_on(kit, traffic)


def hello_of(role, **identity):
    us = {"namespace": "local", "deployment": "local", "revision": "r1", "pod": "y", "role": role}
    plain = example(Hello)
    us = replace(plain.identity, **{**us, **identity})
    return replace(plain, protocol=PROTOCOL_VERSION, identity=us, nonce=os.urandom(32))


def shakes_hands(port, *, meanwhile=lambda: None, **identity):
    """Whether a peer that is one gets through the handshake, as pod "y"."""
    hello = hello_of(Role.DECODE, **identity)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as door:
        door.sendall(frame(HANDSHAKE.encode(hello)))
        welcome = read_frame(door)
        meanwhile()
        proof = Transcript(hello=hello, welcome=HANDSHAKE.decode(welcome)).derive(
            b"local key for tests only", b"dialer"
        )
        door.sendall(frame(HANDSHAKE.encode(Proof(proof=proof))))
        return bool(door.recv(1))  # its first heartbeat


def read_frame(door):
    (length,) = LENGTH.unpack(door.recv(LENGTH.size, socket.MSG_WAITALL))
    return door.recv(length, socket.MSG_WAITALL)


class Recorder:
    """Passes bytes between a decode agent and a prefill agent, and keeps what the first says."""

    def __init__(self, port):
        self._target = port
        self.said = b""
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._door.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._pass, args=(far, near, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()

    def _pass(self, source, sink, keep):
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if keep:
                    self.said += data
                sink.sendall(data)


def test_a_recorded_handshake_is_worth_nothing_again(tmp_path, rooms, kit):
    refused = 'control_refusals_total{reason="authentication"}'
    with LocalAgent(tmp_path / "p", role="prefill") as prefill:
        recorder = Recorder(prefill.control_port)
        peers = [f"127.0.0.1:{recorder.port}"]
        with LocalAgent(tmp_path / "d", role="decode", peers=peers) as decode:
            kit.until(lambda: [p.state for p in prefill.report().peers] == ["up"])
            before = prefill.report().peers
            with socket.create_connection(("127.0.0.1", prefill.control_port)) as door:
                door.sendall(recorder.said)
                assert read_frame(door)  # anybody gets a Welcome
                kit.until(lambda: gone(door))
            assert metric(prefill, refused) == 1
            assert prefill.report().peers == before
            assert [peer.state for peer in decode.report().peers] == ["up"]
        recorder.close()


@pytest.mark.parametrize(
    "wrong", [{"deployment": "other"}, {"namespace": "other"}, {"revision": "r2"}]
)
def test_the_right_key_of_another_deployment_or_revision_is_refused(pair, traffic, kit, wrong):
    refused = 'control_refusals_total{reason="authentication"}'
    before = metric(pair.prefill, refused)
    assert not shakes_hands(pair.prefill.control_port, **wrong)
    assert metric(pair.prefill, refused) == before + 1
    goes_on(kit, traffic)


def test_a_prefill_agent_does_not_answer_itself(pair):
    """A proof reflected to where it came from is of the wrong side."""
    with socket.create_connection(("127.0.0.1", pair.prefill.control_port), timeout=5) as door:
        door.sendall(frame(HANDSHAKE.encode(hello_of(Role.DECODE))))
        welcome = HANDSHAKE.decode(read_frame(door))
        door.sendall(frame(HANDSHAKE.encode(Proof(proof=welcome.proof))))
        assert door.recv(1) == b""


def test_five_hundred_slow_clients_leave_http_to_those_who_ask(pair, traffic, kit):
    agent = pair.decode
    files = files_of(agent)
    crowded = 'http_refusals_total{reason="crowded"}'
    before = metric(agent, crowded)
    with knocking(agent.http_port, 500, HTTP_HEAD) as doors:
        kit.until(lambda: sum(gone(door) for door in doors) >= 244)
        assert metric(agent, crowded) >= before + 244  # 256 seats
        assert files_of(agent) <= files + 256 + 4
        assert agent.get("/readyz") == b"ok\n"
        goes_on(kit, traffic)
    kit.until(lambda: files_of(agent) <= files + 4)


def test_a_report_that_is_waited_for_outlasts_idle_connections(pair, kit):
    agent = pair.decode
    cursor = agent.report().cursor
    with socket.create_connection(("127.0.0.1", agent.http_port), timeout=10) as held:
        ask = f"GET /v1/report?cursor={cursor}&wait_s=3 HTTP/1.1\r\nHost: x\r\n"
        ask += f"Authorization: Bearer {agent.token}\r\n\r\n"
        held.sendall(ask.encode())
        for _ in range(2):  # connections are taken in their order, so it is being answered
            agent.get("/livez")
        with knocking(agent.http_port, 300):
            assert held.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize("head", [b"X: " + b"x" * 100_000, b"X: y\r\n" * 20_000])
def test_endless_headers_are_refused(pair, head):
    refused = 'http_refusals_total{reason="protocol"}'
    before, logged = metric(pair.decode, refused), len(pair.decode.log)
    with socket.create_connection(("127.0.0.1", pair.decode.http_port), timeout=5) as door:
        with contextlib.suppress(OSError):
            door.sendall(HTTP_HEAD + head + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert door.recv(65536)[:12] in (b"HTTP/1.0 400", b"HTTP/1.1 400")
    assert metric(pair.decode, refused) == before + 1
    assert "Traceback" not in pair.decode.log[logged:]


@pytest.mark.parametrize("query", ["cursor=x", "wait_s=nan", "wait_s=inf", "cursor=" + "9" * 5000])
def test_a_query_that_is_no_number_is_refused(pair, query):
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        pair.decode.get(f"/v1/report?{query}")
    caught.value.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "-", "nowhere.invalid"])
def test_a_peer_with_no_possible_name_is_unreachable_and_nothing_more(pair, rooms, kit, host):
    logged = len(pair.decode.log)
    call = kit.in_thread(pair.d.pull, next(rooms), peer=f"{host}:1", expect=pair.items)
    kit.until(pair.decode.transfers)
    assert pair.decode.report().ready
    pair.d.close()
    with pytest.raises(TransferFailed, match="EngineLost"):
        call.result(5)
    assert "Traceback" not in pair.decode.log[logged:]


AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
door = socket.socket(socket.AF_UNIX)
door.settimeout(5)
try:
    door.connect(sys.argv[1])
    door.sendall(b"[\\"report\\"]\\n")
    print(repr(door.recv(100)))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ["agent.sock", "admin.sock"])
def test_another_user_of_the_pod_is_refused_by_mode_and_by_name(tmp_path, name):
    refused = 'engine_socket_refusals_total{reason="user"}'
    with LocalAgent(tmp_path / "p", role="prefill") as agent:

        def outcome():
            command = [sys.executable, "-c", AS_NOBODY, name]
            found = subprocess.run(command, cwd=agent.folder, capture_output=True, check=True)
            return found.stdout.decode().strip()

        assert outcome() == "PermissionError"
        (agent.folder / name).chmod(0o666)  # the mode is gone; who it is, the kernel says
        assert outcome() in ("b''", "ConnectionResetError", "BrokenPipeError")
        assert metric(agent, refused) == 1
        assert "user 65534" in agent.log


def test_junk_on_the_unix_sockets_changes_nothing(pair, traffic, kit):
    refused = 'engine_socket_refusals_total{reason="protocol"}'
    before, logged = metric(pair.decode, refused), len(pair.decode.log)
    for name in ("agent.sock", "admin.sock"):
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff" * 4096,
            b"[" * 5000 + b"\n",
            os.urandom(999),
        ):
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(5)
                door.connect(str(pair.decode.folder / name))
                with contextlib.suppress(OSError):
                    door.sendall(junk)
                    door.shutdown(socket.SHUT_WR)
                    while door.recv(4096):
                        pass
    assert metric(pair.decode, refused) == before + 8
    assert pair.decode.report().engine.connected
    assert "Traceback" not in pair.decode.log[logged:]
    goes_on(kit, traffic)
