"""The cluster's processes: each in a session of its own, remembered by pid and start time.

A pid alone is no identity: it is used again. A record names the pid, the kernel's start tick and the
boot it was seen in; only a process that matches all three is ever signalled.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from disagg_cluster.errors import ComponentError

POLL_S = 0.05
KILLED_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()  # what it reads once at start: a changed one restarts it

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.argv, sorted(self.env.items()))).encode())
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    name: str
    pid: int
    start_tick: int
    boot: str
    fingerprint: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def start_tick(pid: int) -> int | None:
    """None when the process is gone or a zombie (which only waits for its parent)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    state, tick = fields[0], int(fields[19])
    return None if state in "ZX" else tick


def is_alive(record: Record) -> bool:
    return record.boot == boot_id() and start_tick(record.pid) == record.start_tick


def _record_path(run: Path, name: str) -> Path:
    return run / f"{name}.pid.json"


def read_record(run: Path, name: str) -> Record | None:
    try:
        raw = json.loads(_record_path(run, name).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return Record(
        name=name,
        pid=int(raw["pid"]),
        start_tick=int(raw["start_tick"]),
        boot=str(raw["boot"]),
        fingerprint=str(raw["fingerprint"]),
    )


def records(run: Path) -> list[Record]:
    names = sorted(path.name.removesuffix(".pid.json") for path in run.glob("*.pid.json"))
    return [record for name in names if (record := read_record(run, name)) is not None]


def _write_record(run: Path, record: Record) -> None:
    body = {
        "pid": record.pid,
        "start_tick": record.start_tick,
        "boot": record.boot,
        "fingerprint": record.fingerprint,
    }
    path = _record_path(run, record.name)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(body), encoding="utf-8")
    partial.rename(path)


def start(program: Program, *, run: Path, logs: Path) -> Record:
    """Starts it detached; its output is appended to its log."""
    log = os.open(logs / f"{program.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        pid = os.posix_spawnp(
            program.argv[0],
            program.argv,
            {**os.environ, **program.env},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
    tick = start_tick(pid)
    if tick is None:
        reap(pid)
        raise ComponentError(f"{program.name}: ended at once{log_tail(logs, program.name)}")
    record = Record(
        name=program.name, pid=pid, start_tick=tick, boot=boot_id(), fingerprint=program.fingerprint
    )
    _write_record(run, record)
    return record


def ensure(program: Program, *, run: Path, logs: Path) -> bool:
    """True when it had to be started: it was not running, or ran with other arguments or files."""
    record = read_record(run, program.name)
    if record is not None and is_alive(record):
        if record.fingerprint == program.fingerprint:
            return False
        stop([record], run=run)
    start(program, run=run, logs=logs)
    return True


def reap(pid: int) -> None:
    """Where we are the parent, takes the exit status, so that no zombie stays."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait_gone(waiting: Iterable[Record], deadline: float) -> list[Record]:
    left = list(waiting)
    while True:
        left = [record for record in left if is_alive(record)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)


def stop(ending: Iterable[Record], *, run: Path, grace_s: float = 10.0) -> None:
    """Ends exactly these, asks first; forgets them."""
    known = list(ending)
    for record in known:
        if is_alive(record):
            _signal(record.pid, signal.SIGTERM)
    stubborn = _wait_gone(known, time.monotonic() + grace_s)
    for record in stubborn:
        _signal(record.pid, signal.SIGKILL)
    _wait_gone(stubborn, time.monotonic() + KILLED_WITHIN_S)
    for record in known:
        reap(record.pid)
        _record_path(run, record.name).unlink(missing_ok=True)


def log_tail(logs: Path, name: str, *, lines: int = 12) -> str:
    """The end of a log, ready to be put behind an error message."""
    path = logs / f"{name}.log"
    if not path.exists():
        return ""
    tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return f"\n  last lines of {path}:\n" + "\n".join(f"  | {line}" for line in tail)
