"""Hosts on one switch, each a network namespace of its own, whose packets can be lost.

Everything lies in namespaces, the switch too: nothing of the machine's own network is touched, so
every campaign has the same addresses. Names carry the process id, and what a killed campaign left
is taken away by the next one. Packets are dropped where they come in (nftables): a drop on the
way out would be an error at the sender, which no broken network is.
"""

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from disagg_faults.errors import NetworkError

INTERFACE: Final = "eth0"
_NAMESPACES: Final = Path("/run/netns")
_PREFIX: Final = "disagg-faults"
_NAME: Final = re.compile(rf"{_PREFIX}-(?P<pid>\d+)-\d+-[a-z0-9-]+\Z")
_SUBNET: Final = "198.51.100"  # TEST-NET-2; seen by nobody outside of the namespaces
_CLONE_NEWNET: Final = 0x40000000
_COMMANDS: Final = ("ip", "nft", "tc")

_numbers = itertools.count(1)
_T = TypeVar("_T")


def obstacle() -> str:
    """Why namespaces cannot be made here; empty when they can."""
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is missing; install the packages iproute2 and nftables"
    if os.geteuid() != 0:
        return "network namespaces need root; run as root"
    return ""


class Host:
    """One namespace with an address on the switch."""

    def __init__(self, name: str, *, namespace: str, address: str) -> None:
        self.name, self.namespace, self.address = name, namespace, address

    @property
    def launch(self) -> tuple[str, ...]:
        """The words before a command that is to run on this host."""
        return ("ip", "netns", "exec", self.namespace)

    def call(self, work: Callable[[], _T]) -> _T:
        """Run `work` with this host's network; sockets it makes stay there."""
        outcome: list[_T] = []
        failure: list[OSError] = []

        def run() -> None:
            try:
                _enter(self.namespace)
                outcome.append(work())
            except OSError as error:
                failure.append(error)

        # A thread of its own, which ends: the namespace is a thread's, and there is no way back.
        thread = threading.Thread(target=run, name=f"in-{self.namespace}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def listen(self) -> socket.socket:
        return self.call(lambda: socket.create_server(("127.0.0.1", 0)))

    def connect(self, address: tuple[str, int], *, timeout_s: float) -> socket.socket:
        return self.call(lambda: socket.create_connection(address, timeout=timeout_s))


class Network:
    """Use as a context manager; takes away what it made, and the processes that are still in it."""

    def __init__(self, names: Sequence[str]) -> None:
        number = next(_numbers)
        self._stem = f"{_PREFIX}-{os.getpid()}-{number}"
        self._switch = f"{self._stem}-switch"
        self._lossy: set[str] = set()
        self.hosts = {
            name: Host(name, namespace=f"{self._stem}-{name}", address=f"{_SUBNET}.{at + 1}")
            for at, name in enumerate(names)
        }

    def __enter__(self) -> Self:
        why = obstacle()
        if why:
            raise NetworkError(why)
        _sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def lose(self, name: str, *, percent: int = 100) -> None:
        """Lose this share of all packets to and from a host; replaces what was set for it."""
        self.heal(name)
        self._lossy.add(name)
        chance = "" if percent == 100 else f"numgen random mod 100 < {percent} "
        host = self.hosts[name]
        _filter(host, table=name, rule=f'iifname "{INTERFACE}" {chance}drop')
        for other in self.hosts.values():
            if other is not host:
                _filter(other, table=name, rule=f"ip saddr {host.address} {chance}drop")

    def heal(self, name: str) -> None:
        """No packet of this host is lost any more."""
        if name not in self._lossy:
            return
        self._lossy.remove(name)
        for host in self.hosts.values():
            _nft(host, f"add table inet lose-{name}\ndelete table inet lose-{name}\n")

    def throttle(self, name: str, *, mbit_s: int) -> None:
        """What a host sends goes no faster than this, so that faults hit bytes under way."""
        bucket = ("tbf", "rate", f"{mbit_s}mbit", "burst", "256kb", "latency", "50ms")
        host = self.hosts[name]
        _run("tc", "-n", host.namespace, "qdisc", "replace", "dev", INTERFACE, "root", *bucket)

    def _build(self) -> None:
        _run("ip", "netns", "add", self._switch)
        switch = ("ip", "-n", self._switch)
        _run(*switch, "link", "add", "br0", "type", "bridge")
        _run(*switch, "link", "set", "br0", "up")
        for at, host in enumerate(self.hosts.values()):
            port, inside = f"port{at}", ("ip", "-n", host.namespace)
            peer = ("peer", "name", port, "netns", self._switch)
            _run("ip", "netns", "add", host.namespace)
            _run(*inside, "link", "add", INTERFACE, "type", "veth", *peer)
            _run(*switch, "link", "set", port, "master", "br0", "up")
            _run(*inside, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            _run(*inside, "link", "set", INTERFACE, "up")
            _run(*inside, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for namespace in (*(host.namespace for host in self.hosts.values()), self._switch):
            _take_away(namespace)


def _filter(host: Host, *, table: str, rule: str) -> None:
    chain = f"chain in {{ type filter hook input priority 0; {rule}; }};"
    _nft(host, f"table inet lose-{table} {{ {chain} }};\n")


def _nft(host: Host, text: str) -> None:
    _run(*host.launch, "nft", "-f", "-", text=text)


def _run(*command: str, text: str = "") -> str:
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NetworkError(f"{' '.join(command)}: {answer.stderr.strip()}")
    return answer.stdout


def _enter(namespace: str) -> None:
    """os.setns is of Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (_NAMESPACES / namespace).open() as opened:
        if libc.setns(opened.fileno(), _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns {namespace}: {os.strerror(number)}")


def _take_away(namespace: str) -> None:
    if not (_NAMESPACES / namespace).exists():
        return
    for pid in _run("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _run("ip", "netns", "delete", namespace)


def _sweep() -> None:
    """What campaigns left whose process is gone."""
    for path in _NAMESPACES.glob(f"{_PREFIX}-*"):
        match = _NAME.match(path.name)
        if match and not Path("/proc", match["pid"]).exists():
            with contextlib.suppress(NetworkError):  # another campaign takes it away just now
                _take_away(path.name)
