"""A campaign: its plan carried out on a site, each request judged, and what came of it all."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from disagg_faults.errors import HangError
from disagg_faults.oracle import Counted, Seen, judge, judge_counts, patience_s
from disagg_faults.orders import Ending
from disagg_faults.plan import PODS, Step, make_plan
from disagg_faults.site import Load, Site
from disagg_faults.strike import struck
from disagg_faults.traffic import HEAL_S, await_service, carry

PROGRESS: Final = 50  # requests between two lines
_CRIES: Final = ("Traceback (most recent call last)", "Task exception was never retrieved")
_FIRST_PROBE: Final = 1 << 40  # rooms of plain requests; a plan has its own below
_CRY_CHARACTERS: Final = 3000
_LOG_LINES: Final = 40
_MORE_FDS: Final = 24
_MORE_THREADS: Final = 12
_MORE_BYTES: Final = 200 << 20

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What became of the requests so far."""

    requests: int = 0
    exact: int = 0
    hangs: int = 0
    leaks: int = 0
    wrong: int = 0
    heal_s: float = 0.0  # the longest it took after a step until all was well
    causes: Counter[str] = field(default_factory=Counter)  # as decode's engine was told
    violations: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        return self.causes.total()

    def line(self) -> str:
        causes = ", ".join(f"{cause} {count}" for cause, count in self.causes.most_common())
        return (
            f"{self.requests} requests: {self.exact} exact, {self.failed} failed ({causes}), "
            f"{self.hangs} hangs, {self.leaks} leaks, {self.wrong} wrong, "
            f"healed within {self.heal_s:.1f} s"
        )


def run_campaign(
    *,
    seed: int,
    requests: int,
    folder: Path,
    say: Say,
    from_step: int = 1,
    verbose: bool = False,
) -> Tally:
    """Stops at the first step with a violation, which then is the tally's."""
    tally = Tally()
    say(f"campaign: seed {seed}, {requests} requests")
    with Site(folder, seed=seed) as site:
        campaign = _Campaign(site, tally, say)
        try:
            campaign.run(make_plan(seed=seed, requests=requests)[from_step - 1 :], verbose=verbose)
        except BaseException:
            campaign.show_logs()
            raise
        for words in tally.violations:
            say(f"VIOLATION seed {seed} {words}")
        if tally.violations:
            campaign.show_logs()
    say(f"campaign: seed {seed}: {tally.line()}")
    return tally


class _Campaign:
    def __init__(self, site: Site, tally: Tally, say: Say) -> None:
        self._site, self._tally, self._say = site, tally, say
        self._logs = dict.fromkeys(PODS, 0)  # characters of each log that were looked at
        self._loads: dict[int, tuple[str, Load]] = {}
        self._probes = itertools.count(_FIRST_PROBE)

    def run(self, plan: Iterable[Step], *, verbose: bool) -> None:
        for step in plan:
            if verbose:
                self._say(str(step))
            self._tally.violations += self.carry_out(step)
            if self._tally.violations:
                return
        self._tally.violations += self.conclude()

    def carry_out(self, step: Step) -> list[str]:
        """The step's violations."""
        before = {pod: self._counted(pod) for pod in PODS}
        self._note_loads()
        with struck(self._site, step) as struck_at:
            seen = carry(self._site, step.requests, within_s=patience_s(step))
        violations = [*judge(step, seen, struck_at=struck_at), *self._deaths()]
        violations += self._settle(seen, before) if not violations else ()
        violations += self._cries()
        self._count(seen)
        return [f"{step}: {words}" for words in violations]

    def _settle(self, seen: list[Seen], before: Mapping[str, Counted]) -> Iterator[str]:
        """The site heals by itself, every extent comes back, and the counters are right."""
        began_at = time.monotonic()
        try:
            self._site.await_health(within_s=HEAL_S)
            after = {pod: self._counted(pod) for pod in PODS}
            await_service(self._site, self._probes)
        except HangError as error:
            self._tally.leaks += 1
            yield str(error)
            return
        self._tally.heal_s = max(self._tally.heal_s, time.monotonic() - began_at)
        for pod in PODS:
            yield from judge_counts(before=before[pod], after=after[pod], seen=seen, pod=pod)

    def conclude(self) -> list[str]:
        """What may only be seen at the end: no agent that lived on has grown."""
        violations: list[str] = []
        for pid, (pod, first) in self._loads.items():
            if pid != self._site.agents[pod].process.pid:
                continue
            now = self._site.load(pod)
            if (
                now.fds > first.fds + _MORE_FDS
                or now.threads > first.threads + _MORE_THREADS
                or now.rss_bytes > first.rss_bytes + _MORE_BYTES
            ):
                self._tally.leaks += 1
                violations.append(f"end: {pod} grew from {first} to {now}")
        return violations

    def show_logs(self) -> None:
        for pod in PODS:
            for what, log in (
                ("agent", self._site.agents[pod].log),
                ("engine", self._site.engines[pod].log),
            ):
                for line in log.splitlines()[-_LOG_LINES:]:
                    self._say(f"{what} of {pod}: {line}")

    def _counted(self, pod: str) -> Counted:
        report = self._site.agents[pod].status()
        return Counted(
            incarnation=report.incarnation,
            transfers={row.type: row.transfers for row in report.state_types},
            failures={row.type: row.failures for row in report.state_types},
        )

    def _count(self, seen: list[Seen]) -> None:
        tally = self._tally
        for one in seen:
            outcomes = (one.prefill, one.decode)
            tally.hangs += any(outcome is None for outcome in outcomes)
            tally.wrong += any(o is not None and o.ending is Ending.WRONG for o in outcomes)
            if one.decode is not None and one.decode.ending is Ending.EXACT:
                tally.exact += 1
            elif one.decode is not None and one.decode.ending is not Ending.WRONG:
                tally.causes[one.decode.cause or "engine killed"] += 1
            tally.requests += 1
            if not tally.requests % PROGRESS:
                self._say(tally.line())

    def _deaths(self) -> Iterator[str]:
        """Whoever was killed is up again by now."""
        for pod in PODS:
            for process in (self._site.agents[pod].process, self._site.engines[pod].process):
                if process.poll() is not None:
                    yield f"a process of {pod} ended of itself with status {process.returncode}"

    def _cries(self) -> Iterator[str]:
        """An agent that has logged a traceback is not right, whatever became of the requests."""
        for pod in PODS:
            fresh = self._site.agents[pod].log[self._logs[pod] :]
            self._logs[pod] += len(fresh)
            at = min((fresh.index(cry) for cry in _CRIES if cry in fresh), default=None)
            if at is not None:
                yield f"the agent of {pod} logged: {fresh[at : at + _CRY_CHARACTERS]}"

    def _note_loads(self) -> None:
        for pod in PODS:
            pid = self._site.agents[pod].process.pid
            if pid not in self._loads:
                self._loads[pid] = (pod, self._site.load(pod))
