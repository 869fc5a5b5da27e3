"""Looks at the metrics of every router now and then: how many answers each worker gave."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from disagg_operator.kinds import Owner
from disagg_operator.render.routers import METRICS_PORT
from disagg_operator.reports import bounded, host
from disagg_operator.served import Look, answered
from disagg_transfer.contract import ReportError

PERIOD_S = 10.0
TIMEOUT_S = 5.0
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Followed:
    addresses: Mapping[str, str] = field(default_factory=dict)
    looks: dict[str, Look] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class RouterFeed:
    """`wake` is called when a look brought something that a pass should see."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        wake: Callable[[Owner], None],
        port: int = METRICS_PORT,
        period_s: float = PERIOD_S,
    ) -> None:
        self._session, self._wake = session, wake
        self._port, self._period_s = port, period_s
        self._followed: dict[Owner, _Followed] = {}

    def follow(self, owner: Owner, addresses: Mapping[str, str]) -> None:
        """Look at exactly these routers: addresses by the uid of their pods."""
        followed = self._followed.setdefault(owner, _Followed())
        followed.addresses = dict(addresses)
        followed.looks = {u: look for u, look in followed.looks.items() if u in addresses}
        if addresses and followed.task is None:
            name = f"looks at routers of {owner[0]}/{owner[1]}"
            followed.task = asyncio.create_task(self._run(owner, followed), name=name)

    def looks(self, owner: Owner) -> Mapping[str, Look]:
        followed = self._followed.get(owner)
        return dict(followed.looks) if followed else {}

    def forget(self, owner: Owner) -> None:
        followed = self._followed.pop(owner, _Followed())
        if followed.task is not None:
            followed.task.cancel()

    async def close(self) -> None:
        tasks = [followed.task for followed in self._followed.values() if followed.task]
        for owner in list(self._followed):
            self.forget(owner)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, owner: Owner, followed: _Followed) -> None:
        rose = False
        while True:
            before = _sums(followed)
            await asyncio.gather(*(self._look(followed, uid) for uid in followed.addresses))
            rises = _sums(followed) != before
            if rises or rose:  # what rose counts from the next look on, which must be seen, too
                self._wake(owner)
            rose = rises
            await asyncio.sleep(self._period_s)

    async def _look(self, followed: _Followed, uid: str) -> None:
        """A router that does not answer is told by its own condition; its last counts stand."""
        url = f"http://{host(followed.addresses[uid])}:{self._port}/metrics"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with self._session.get(url, timeout=timeout) as response:
                response.raise_for_status()
                text = await bounded(response.content, url)
        except (aiohttp.ClientError, TimeoutError, OSError, ReportError) as error:
            logger.debug("no metrics from %s: %s", url, error)
            return
        before = followed.looks.get(uid)
        number = before.number + 1 if before else 1
        if uid in followed.addresses:
            counts = answered(text.decode(errors="replace"))
            followed.looks[uid] = Look(number=number, answered=counts)


def _sums(followed: _Followed) -> Mapping[str, Mapping[str, int]]:
    return {uid: look.answered for uid, look in followed.looks.items()}
