"""The campaign's handle on an engine's process: orders in, outcomes out, kill and replace."""

import contextlib
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Final

from disagg_faults.engine import READY
from disagg_faults.errors import EngineProcessError
from disagg_faults.orders import Ending, Order, Outcome, read_outcome

_START_S: Final = 30.0
_END_S: Final = 10.0


class EngineProcess:
    process: "subprocess.Popen[str]"

    def __init__(self, name: str, *, role: str, socket_path: str, seed: int, log: Path) -> None:
        self.name = name
        self._command = (
            *(sys.executable, "-m", "disagg_faults.engine"),
            *("--socket", socket_path, "--role", role, "--seed", str(seed)),
        )
        self._log = log
        self._waiting: dict[int, tuple[float, Future[Outcome]]] = {}
        self._lock = threading.Lock()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def start(self) -> None:
        """Return when it is registered with its agent."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        ready = threading.Event()
        self._reader = threading.Thread(
            target=self._read, args=(self.process.stdout, ready), name=self.name, daemon=True
        )
        self._reader.start()
        if not ready.wait(_START_S):
            self.kill()
            raise EngineProcessError(f"{self.name} did not register:\n{self.log}")

    def order(self, order: Order) -> "Future[Outcome]":
        """Its outcome, sooner or later: a killed process ends its orders as DIED."""
        future: Future[Outcome] = Future()
        with self._lock:
            self._waiting[order.room] = (time.monotonic(), future)
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(order.to_line())
            self.process.stdin.flush()
        except OSError:
            self._end_all()  # it was killed just now
        return future

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(_END_S)
        self._reader.join(_END_S)
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _read(self, lines: IO[str], ready: threading.Event) -> None:
        for line in lines:
            if line.strip() == READY:
                ready.set()
                continue
            outcome = read_outcome(line)
            with self._lock:
                _, future = self._waiting.pop(outcome.room, (0.0, None))
            if future is not None:
                future.set_result(outcome)
        lines.close()
        self._end_all()

    def _end_all(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for room, (began_at, future) in waiting.items():
            future.set_result(
                Outcome(
                    room=room,
                    ending=Ending.DIED,
                    began_at=began_at,
                    ended_at=time.monotonic(),
                )
            )
