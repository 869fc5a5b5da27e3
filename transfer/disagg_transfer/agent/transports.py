"""What this agent knows of the transport that its reads go over; UCX's messages go to the log."""

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Final

from disagg_transfer.contract import Transport
from disagg_transfer.rdma import rdma_facts
from disagg_transfer.transport import Choices, why_not_rdma
from disagg_transfer.ucx import UcxSettings
from disagg_transfer.ucx_log import UcxLog

_DRAIN_EVERY_S: Final = 1.0

_LEVEL: Final = re.compile(r" UCX +([A-Z]+) ")
_LEVELS: Final = {"FATAL": logging.ERROR, "ERROR": logging.ERROR, "WARN": logging.WARNING}

_log = logging.getLogger("ucx")


class Transports:
    """Every NIXL agent of the process is made while `opened`."""

    def __init__(self, ucx: UcxSettings, *, arena_bytes: int) -> None:
        self._arena_bytes = arena_bytes
        self._env = ucx.environment | os.environ
        self._ucx = UcxLog(os.environ)
        self._choices = Choices()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        try:
            with self._ucx.opened():
                yield
        finally:
            self.hand_on()

    async def run(self) -> None:
        while True:
            self.hand_on()
            await asyncio.sleep(_DRAIN_EVERY_S)

    def before_read(self) -> None:
        self.hand_on()
        self._choices.absorb()

    def after_read(self, cost: int) -> tuple[Transport, str]:
        """What the read since `before_read` went over, and why that is not RDMA, in words. Other
        peers may have been read from meanwhile; then it is told by `cost`, or not at all.
        """
        self.hand_on()
        table = self._choices.resolve(cost)
        facts = rdma_facts(self._env, arena_bytes=self._arena_bytes)
        reason = why_not_rdma(table, facts)
        if table is None:
            return Transport.UNKNOWN, "; ".join(filter(None, (self._ucx.obstacle, reason)))
        return table.transport, reason

    def hand_on(self) -> None:
        """Read what UCX has printed; its warnings go to the agent's own log."""
        for message in self._choices.output.feed(self._ucx.drain()):
            found = _LEVEL.search(message)
            _log.log(_LEVELS.get(found[1] if found else "", logging.INFO), "%s", message)
