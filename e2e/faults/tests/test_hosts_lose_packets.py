"""Network namespaces for real: what is lost, what is not, and that nothing stays behind."""

import socket
import subprocess
from pathlib import Path

import pytest

from disagg_faults.net import Network, obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "can be made")

PORT = 5000


def namespaces():
    return {path.name for path in Path("/run/netns").glob("disagg-faults-*")}


@pytest.fixture
def network():
    with Network(("a", "b", "c")) as network:
        yield network


def heard(network, sender, receiver, packets=40):
    """How many of so many packets arrive."""
    there = network.hosts[receiver]
    with there.call(lambda: bound(there.address)) as ear:
        with network.hosts[sender].call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as mouth:
            for _ in range(packets):
                mouth.sendto(b"x", (there.address, PORT))
        ear.settimeout(0.2)  # a veth pair delivers within the send; this only ends the count
        count = 0
        while True:
            try:
                ear.recv(1)
            except TimeoutError:
                return count
            count += 1


def bound(address):
    plain = socket.socket(type=socket.SOCK_DGRAM)
    plain.bind((address, PORT))
    return plain


def test_a_black_holed_host_neither_hears_nor_is_heard_and_the_others_go_on(network):
    assert heard(network, "a", "b") == 40
    network.lose("b")
    assert heard(network, "a", "b") == heard(network, "b", "a") == 0
    assert heard(network, "a", "c") == 40
    network.heal("b")
    assert heard(network, "a", "b") == heard(network, "b", "a") == 40


def test_a_share_of_the_packets_is_lost(network):
    network.lose("b", percent=50)
    assert 20 < heard(network, "a", "b", packets=100) < 80
    network.lose("b")  # replaces it
    assert heard(network, "a", "b") == 0


def test_processes_and_namespaces_are_taken_away(network):
    sleeper = subprocess.Popen([*network.hosts["a"].launch, "sleep", "60"])
    before = namespaces()
    with Network(("a",)) as other:
        inside = subprocess.Popen([*other.hosts["a"].launch, "sleep", "60"])
        # `ip` has entered the namespace once it has become the command.
        wait_for_command(inside.pid, "sleep")
        assert len(namespaces() - before) == 2
    assert inside.wait(5) == -9
    assert namespaces() == before
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def wait_for_command(pid, name):
    for _ in range(500):
        if Path("/proc", str(pid), "comm").read_text().strip() == name:
            return
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError(f"{pid} has not become {name}")


def test_what_a_killed_campaign_left_is_taken_away_by_the_next_one(network):
    left = "disagg-faults-4194305-1-a"  # no process has this id: it is past the kernel's limit
    subprocess.run(["ip", "netns", "add", left], check=True)
    kept = namespaces() - {left}
    with Network(("a",)):
        assert left not in namespaces()
        assert kept <= namespaces()


def test_without_root_the_reason_is_said(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert obstacle() == "network namespaces need root; run as root"
