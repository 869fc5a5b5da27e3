"""Keeps the newest report of every agent: one long poll per pod.

A poll is answered as soon as the agent's cursor moves, so that a failure is known here within the
time of one HTTP answer; between changes nothing is sent.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from disagg_operator.kinds import Owner
from disagg_operator.observe import AgentView
from disagg_transfer.contract import (
    HTTP_PORT,
    MAX_REPORT_BYTES,
    PATH_REPORT,
    Report,
    ReportError,
    parse_report,
)

# How long an agent holds an unchanged report back, and how much longer we wait for its answer.
WAIT_S = 20
GRACE_S = 5.0
CONNECT_TIMEOUT_S = 3.0
# Pause after a failed poll, between these bounds: an agent that restarts is found within a second.
PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    uid: str
    ip: str
    port: int = HTTP_PORT
    # May change from one poll to the next; the same agent answers.
    token: str = field(default="", repr=False, compare=False)


class ReportRefusedError(ReportError):
    """The agent does not take our token."""


@dataclass(slots=True)
class _Poll:
    target: Target
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Followed:
    polls: dict[str, _Poll] = field(default_factory=dict)
    views: dict[str, AgentView] = field(default_factory=dict)


class ReportFeed:
    """`wake` is called whenever a view of an owner changed."""

    def __init__(
        self,
        *,
        session: aiohttp.ClientSession,
        wake: Callable[[Owner], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._wake = wake
        self._clock = clock
        self._followed: dict[Owner, _Followed] = {}

    def follow(self, owner: Owner, targets: Mapping[str, Target]) -> None:
        """Poll exactly these pods of `owner`; views of others are dropped."""
        followed = self._followed.setdefault(owner, _Followed())
        for pod, poll in list(followed.polls.items()):
            if targets.get(pod) != poll.target:
                poll.task.cancel()
                del followed.polls[pod]
                followed.views.pop(pod, None)
        for pod, target in targets.items():
            if pod in followed.polls:
                followed.polls[pod].target = target
            else:
                task = asyncio.create_task(
                    self._poll(owner, pod), name=f"reports of {owner[0]}/{pod}"
                )
                followed.polls[pod] = _Poll(target=target, task=task)

    def views(self, owner: Owner) -> Mapping[str, AgentView]:
        followed = self._followed.get(owner)
        return dict(followed.views) if followed else {}

    def forget(self, owner: Owner) -> None:
        followed = self._followed.pop(owner, _Followed())
        for poll in followed.polls.values():
            poll.task.cancel()

    @property
    def pollers(self) -> int:
        return sum(len(followed.polls) for followed in self._followed.values())

    async def close(self) -> None:
        tasks = [p.task for f in self._followed.values() for p in f.polls.values()]
        for owner in list(self._followed):
            self.forget(owner)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, owner: Owner, pod: str) -> None:
        while True:
            view = self.views(owner).get(pod, AgentView())
            try:
                report = await self._ask(self._followed[owner].polls[pod].target, _cursor(view))
            except (aiohttp.ClientError, TimeoutError, OSError, ReportError) as error:
                self._failed(owner, pod, view, error)
                await asyncio.sleep(random.uniform(PAUSE_MIN_S, PAUSE_MAX_S))  # noqa: S311 - spreads retries
                continue
            changed = _version(report) != _version(view.report)
            self._store(owner, pod, AgentView(report=report), changed=changed)
            if not changed:
                # The wait was over; an agent that does not wait must not make us spin.
                await asyncio.sleep(PAUSE_MIN_S)

    async def _ask(self, target: Target, cursor: int | None) -> Report:
        """Without a cursor the agent answers at once: the first time, and after a failure."""
        url = f"http://{host(target.ip)}:{target.port}{PATH_REPORT}"
        query = {} if cursor is None else {"cursor": cursor, "wait_s": WAIT_S}
        timeout = aiohttp.ClientTimeout(total=WAIT_S + GRACE_S, sock_connect=CONNECT_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        async with self._session.get(
            url, params=query, headers=headers, timeout=timeout
        ) as response:
            if response.status == 401:
                raise ReportRefusedError(f"HTTP 401 from {url}")
            if response.status != 200:
                raise ReportError(f"HTTP {response.status} from {url}")
            return parse_report(await bounded(response.content, url))

    def _failed(self, owner: Owner, pod: str, view: AgentView, error: Exception) -> None:
        failing_since = self._clock() if view.failing_since is None else view.failing_since
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        failed = AgentView(
            report=view.report,
            error=text,
            failing_since=failing_since,
            refused=isinstance(error, ReportRefusedError),
        )
        self._store(
            owner, pod, failed, changed=(view.refused, not view.error) != (failed.refused, False)
        )

    def _store(self, owner: Owner, pod: str, view: AgentView, *, changed: bool) -> None:
        followed = self._followed.get(owner)
        if followed is None:
            return
        before = followed.views.get(pod)
        followed.views[pod] = view
        if changed or (before is not None and bool(before.error) != bool(view.error)):
            self._wake(owner)


async def bounded(content: aiohttp.StreamReader, url: str) -> bytes:
    """The whole body; whoever has the address of a pod that is gone may send without end."""
    body = bytearray()
    async for part in content.iter_any():
        body += part
        if len(body) > MAX_REPORT_BYTES:
            raise ReportError(f"more than {MAX_REPORT_BYTES} bytes from {url}")
    return bytes(body)


def _cursor(view: AgentView) -> int | None:
    return None if view.report is None or view.error else view.report.cursor


def _version(report: Report | None) -> tuple[str, int] | None:
    return None if report is None else (report.incarnation, report.cursor)


def host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
