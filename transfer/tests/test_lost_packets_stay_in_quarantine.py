"""The same promise with a network that swallows packets: two hosts, and NIXL over TCP between them.

While nobody knows whether bytes still come, their extent is out of reach. They come when the
network heals in time, and never when NIXL has given the connection up.
"""

import contextlib
import json
import subprocess
import time

import pytest

from disagg_faults.net import Network, obstacle
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import parse_report
from disagg_transfer.local import LocalAgent

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "can be made")

MIB = 1 << 20
BIG = 96  # items of a MiB
PAGE = 4096


class Hosts:
    """Two agents on hosts of their own, and engines that are threads of the test."""

    def __init__(self, network, prefill, other, decode, kit):
        self.network, self.prefill, self.decode = network, prefill, decode
        self.other_peer = f"{network.hosts['q'].address}:{other.control_port}"
        parts = (kit.part("kv", item_bytes=MIB),)
        self.p = kit.connect(prefill, "prefill", parts)
        self.q = kit.connect(other, "prefill", parts)
        self.d = kit.connect(decode, "decode", parts)
        self.peer = f"{network.hosts['p'].address}:{prefill.control_port}"

    @property
    def arena(self):
        return self.d.arena

    def report(self):
        """By the admin socket: HTTP is on the other host."""
        return parse_report(json.dumps(self.decode._ask("report")["report"]).encode())

    def pull(self, room, *, peer=None, items=BIG):
        return self.d.pull(room, peer=peer or self.peer, expect={"kv": items})

    def offer(self, room, payload, *, engine=None):
        engine = engine or self.p
        engine.begin(room)
        extent = engine.reserve(room, len(payload), timeout_s=5)
        extent.view[:] = payload
        engine.offer(room, "kv", extent, items=len(payload) // MIB, last=True)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, kit):
    folder = tmp_path_factory.mktemp("hosts")
    limits = {"default": 30, "stages": {"wire": 2.0}}
    common = {
        "arena_bytes": 2 * BIG * MIB,
        "timeouts": limits,
        "integrity": "off",
        # Else the kernel that both hosts share would copy; and a sample would write to free memory.
        "env": {"UCX_TLS": "tcp", "DISAGG_PREFLIGHT": "off"},
    }
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(("p", "q", "d")))
        on_p, on_q, on_d = (network.hosts[name].launch for name in ("p", "q", "d"))
        p = LocalAgent(folder / "p", role="prefill", launch=on_p, **common)
        q = LocalAgent(folder / "q", role="prefill", pod="other", launch=on_q, **common)
        peer = f"{network.hosts['p'].address}:{stack.enter_context(p).control_port}"
        d = LocalAgent(folder / "d", role="decode", launch=on_d, peers=[peer], **common)
        hosts = Hosts(network, p, stack.enter_context(q), stack.enter_context(d), kit)
        yield hosts
        for client in (hosts.p, hosts.q, hosts.d):
            client.close()


def black_holed_in_mid_read(hosts, payload, rooms, kit):
    """What lay in the arena when the request had failed, its extent unsettled."""
    kit.until(lambda: hosts.report().ready, within_s=20)
    hosts.network.throttle("p", mbit_s=200)  # four seconds for the payload
    room = next(rooms)
    hosts.offer(room, payload)
    pulled = kit.in_thread(hosts.pull, room)
    kit.until(lambda: hosts.arena[:PAGE] == payload[:PAGE], every_s=0.001)
    hosts.network.lose("p")
    with pytest.raises(TransferFailed, match="Timeout in stage wire"):
        pulled.result(8)
    assert hosts.report().arena.unsettled == BIG * MIB
    return bytes(hosts.arena[: BIG * MIB])


def test_bytes_that_come_when_the_network_heals_find_their_extent_kept(hosts, rooms, kit):
    payload = bytes(range(1, 256)) * (BIG * MIB // 255 + 1)
    payload = payload[: BIG * MIB]
    before = black_holed_in_mid_read(hosts, payload, rooms, kit)
    hosts.network.heal("p")
    kit.until(lambda: hosts.report().arena.used == 0, within_s=20)
    after = bytes(hosts.arena[: BIG * MIB])
    late = [
        at for at in range(0, len(after), PAGE) if before[at : at + PAGE] != after[at : at + PAGE]
    ]
    assert late, "nothing landed late"
    assert all(after[at : at + PAGE] == payload[at : at + PAGE] for at in late)
    kit.until(lambda: heard_again(hosts, next(rooms)), within_s=20)
    served_again(hosts, payload, rooms, kit)


def test_no_byte_comes_to_an_extent_that_is_free_once_nixl_has_given_up(hosts, rooms, kit):
    payload = bytes(range(1, 252)) * (BIG * MIB // 251 + 1)
    payload = payload[: BIG * MIB]
    before = black_holed_in_mid_read(hosts, payload, rooms, kit)
    kit.until(lambda: hosts.report().arena.used == 0, within_s=40)
    assert bytes(hosts.arena[: BIG * MIB]) == before
    hosts.network.heal("p")
    kit.until(lambda: hosts.report().ready, within_s=20)
    assert bytes(hosts.arena[: BIG * MIB]) == before
    served_again(hosts, payload, rooms, kit)


def served_again(hosts, payload, rooms, kit):
    kit.until(lambda: hosts.report().ready, within_s=20)
    hosts.network.throttle("p", mbit_s=20_000)
    room = next(rooms)
    hosts.offer(room, payload)
    assert bytes(hosts.pull(room).payloads["kv"].view) == payload
    hosts.d.release(room)
    hosts.p.wait_released(room, 5)


def heard_again(hosts, room):
    """False where the control connection, healed with the network, has yet to be found silent: the
    kernel may send on it only after the heartbeat limit, when its back-off has grown so long.
    """
    if not hosts.report().ready:
        return False
    hosts.offer(room, bytes(MIB))
    try:
        hosts.pull(room, items=1)
    except TransferFailed as failure:
        if "no heartbeat" not in failure.detail:
            raise
        hosts.p.abort(room, "its peer was lost")
        return False
    hosts.d.release(room)
    hosts.p.wait_released(room, 5)
    return True


@contextlib.contextmanager
def control_alone(network, port):
    """No TCP between the hosts but on the control port: the fabric is dead, the agents are not."""
    rules = f"""
        type filter hook input priority 0
        tcp dport {port} accept
        tcp sport {port} accept
        iifname eth0 ip saddr {network.hosts["p"].address} meta l4proto tcp drop
    """
    nft(network.hosts["d"], f"table inet cut {{ chain in {{{rules}}}\n}}\n")
    try:
        yield
    finally:
        nft(network.hosts["d"], "delete table inet cut\n")


def nft(host, text):
    subprocess.run([*host.launch, "nft", "-f", "-"], input=text, text=True, check=True)


def test_a_dead_fabric_is_told_from_a_dead_peer_and_holds_nobody_else_up(hosts, rooms, kit):
    payload = bytes(range(1, 250)) * (BIG * MIB // 249 + 1)
    payload, small = payload[: BIG * MIB], payload[: 8 * MIB]
    served_again(hosts, payload, rooms, kit)
    with control_alone(hosts.network, hosts.prefill.control_port):
        room = next(rooms)
        hosts.offer(room, small)
        with pytest.raises(TransferFailed, match="Timeout in stage wire") as caught:
            hosts.pull(room, items=8)
        assert caught.value.peer_pod == "prefill"
        row = kit.until(lambda: held_back(hosts), within_s=20)
        assert (row.state, "NIXL endpoint is gone" in row.detail) == ("up", True)
        # Tries go on meanwhile, and block for seconds; a lane of their own bears it.
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            began = time.monotonic()
            moved(hosts, small, next(rooms))
            assert time.monotonic() - began < 2.5
        failure = kit.until(lambda: refused(hosts, next(rooms)), within_s=30, every_s=0.5)
        assert (failure.cause, failure.stage) == ("TransportError", "bootstrap")
        assert "reads from it are held back" in failure.detail
    kit.until(lambda: not held_back(hosts), within_s=30)
    served_again(hosts, payload, rooms, kit)


def held_back(hosts):
    rows = [row for row in hosts.report().peers if row.pod == "prefill"]
    return next((row for row in rows if "held back" in row.detail), None)


def moved(hosts, payload, room):
    """A request from the other prefill pod, whose fabric is well."""
    hosts.offer(room, payload, engine=hosts.q)
    arrival = hosts.pull(room, peer=hosts.other_peer, items=len(payload) // MIB)
    assert bytes(arrival.payloads["kv"].view) == payload
    hosts.d.release(room)
    hosts.q.wait_released(room, 5)


def refused(hosts, room):
    """The failure of a request that did not have to wait for it; None while it would."""
    pulled = time.monotonic()
    with pytest.raises(TransferFailed) as caught:
        hosts.pull(room, items=8)
    hosts.p.refuse(room, detail="it was never begun")
    return caught.value if time.monotonic() - pulled < 1 else None
