"""The same promise with a network that swallows packets: two hosts, and NIXL over TCP between them.

While nobody knows whether bytes still come, their extent is out of reach. They come when the
network heals in time, and never when NIXL has given the connection up.
"""

import contextlib
import json

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

    def __init__(self, network, prefill, decode, kit):
        self.network, self.prefill, self.decode = network, prefill, decode
        parts = (kit.part("kv", item_bytes=MIB),)
        self.p = kit.connect(prefill, "prefill", parts)
        self.d = kit.connect(decode, "decode", parts)
        self.peer = f"{network.hosts['p'].address}:{prefill.control_port}"

    @property
    def arena(self):
        return self.d.arena

    def report(self):
        """By the admin socket: HTTP is on the other host."""
        return parse_report(json.dumps(self.decode._ask("report")["report"]).encode())

    def pull(self, room):
        return self.d.pull(room, peer=self.peer, expect={"kv": BIG})

    def offer(self, room, payload):
        self.p.begin(room)
        extent = self.p.reserve(room, len(payload), timeout_s=5)
        extent.view[:] = payload
        self.p.offer(room, "kv", extent, items=BIG, last=True)


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
        network = stack.enter_context(Network(("p", "d")))
        on_p, on_d = network.hosts["p"].launch, network.hosts["d"].launch
        p = LocalAgent(folder / "p", role="prefill", launch=on_p, **common)
        peer = f"{network.hosts['p'].address}:{stack.enter_context(p).control_port}"
        d = LocalAgent(folder / "d", role="decode", launch=on_d, peers=[peer], **common)
        hosts = Hosts(network, p, stack.enter_context(d), kit)
        yield hosts
        hosts.p.close()
        hosts.d.close()


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
