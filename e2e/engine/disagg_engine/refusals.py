"""Requests that this engine refused, until its agent has told the peer's half of each.

A router sends the same request to both sides and waits for both; the side that takes its copy up
would wait for the other until a deadline. While the agent is away refusals are kept, because the
other side may outlive it and ask for the room again.
"""

import logging
import threading
from typing import Final

from disagg_engine.requests import Bootstrap
from disagg_transfer.client import AgentClient, TransferFailed
from disagg_transfer.contract import Cause

MAX_UNTOLD: Final = 4096
MAX_DETAIL_CHARS: Final = 512
log = logging.getLogger(__name__)


class Refusals:
    def __init__(self, role: str) -> None:
        self._role = role
        self._lock = threading.Lock()
        self._untold: dict[int, tuple[str, str]] = {}  # room -> peer, detail; oldest first

    def add(self, bootstrap: Bootstrap, reason: str) -> None:
        detail = f"{self._role} refused the request: {reason}"[:MAX_DETAIL_CHARS]
        with self._lock:
            if len(self._untold) >= MAX_UNTOLD:
                del self._untold[next(iter(self._untold))]
            self._untold[bootstrap.room] = bootstrap.peer, detail

    def tell(self, client: AgentClient) -> None:
        """Blocking, a moment for each; what an agent that is lost did not hear is kept."""
        while taken := self._take():
            room, (peer, detail) = taken
            try:
                client.refuse(room, peer=peer, detail=detail)
            except TransferFailed as error:
                if error.cause is Cause.ENGINE_LOST:
                    with self._lock:
                        self._untold[room] = peer, detail
                    return
                log.warning("room %d: its refusal was not passed on: %s", room, error)

    def _take(self) -> tuple[int, tuple[str, str]] | None:
        with self._lock:
            return self._untold.popitem() if self._untold else None
