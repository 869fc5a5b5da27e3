"""Totals per state type that survive restarts of agents and of the operator: pure.

An agent counts from 0 at each start (a new incarnation). A total is

    settled + the counts of all incarnations that report now

where `settled` holds the last counts of incarnations that are gone. It is not stored: when the
operator starts, it takes the totals of the status that it finds, less what the agents report at
that moment. Counts that an agent gathered and lost while no operator ran are missing from the
total; a total never goes back.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from disagg_operator.api.status import StateTypeStatus
from disagg_operator.observe import AgentView
from disagg_transfer.contract import Report, Role, StateTypeReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    transfers: int = 0
    bytes: int = 0
    timeouts: int = 0
    failures: int = 0

    def __add__(self, other: Self) -> "Counts":
        return Counts(
            transfers=self.transfers + other.transfers,
            bytes=self.bytes + other.bytes,
            timeouts=self.timeouts + other.timeouts,
            failures=self.failures + other.failures,
        )

    def above(self, other: Self) -> "Counts":
        """What this has more than `other`, never less than nothing."""
        return Counts(
            transfers=max(0, self.transfers - other.transfers),
            bytes=max(0, self.bytes - other.bytes),
            timeouts=max(0, self.timeouts - other.timeouts),
            failures=max(0, self.failures - other.failures),
        )


ByType = Mapping[str, Counts]
_NOTHING = Counts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    settled: ByType = field(default_factory=dict)
    live: Mapping[str, tuple[str, ByType]] = field(default_factory=dict)
    # Whether the status found at the start is accounted for in `settled`.
    anchored: bool = False

    def total(self, state_type: str) -> Counts:
        running = (counts.get(state_type, _NOTHING) for _, counts in self.live.values())
        return sum(running, self.settled.get(state_type, _NOTHING))


def advance(
    tally: Tally,
    views: Mapping[str, AgentView],
    *,
    previous: Iterable[StateTypeStatus],
    complete: bool,
) -> Tally:
    """`complete` once every agent was asked; until then the found totals stand unchanged."""
    live = {
        pod: (view.report.incarnation, _counts(view.report))
        for pod, view in views.items()
        if view.report is not None and view.report.role is Role.DECODE
    }
    if tally.anchored:
        return Tally(settled=_settled(tally, live), live=live, anchored=True)
    found = {row.type: _row_counts(row) for row in previous}
    if not complete:
        return Tally(settled=found)
    running = Tally(live=live)
    settled = {name: counts.above(running.total(name)) for name, counts in found.items()}
    return Tally(settled=settled, live=live, anchored=True)


def _settled(tally: Tally, live: Mapping[str, tuple[str, ByType]]) -> ByType:
    settled = dict(tally.settled)
    for pod, (incarnation, counts) in tally.live.items():
        if pod not in live or live[pod][0] != incarnation:
            for name, gone in counts.items():
                settled[name] = settled.get(name, _NOTHING) + gone
    return settled


def _counts(report: Report) -> ByType:
    return {row.type: _row_counts(row) for row in report.state_types}


def _row_counts(row: StateTypeReport | StateTypeStatus) -> Counts:
    return Counts(
        transfers=row.transfers, bytes=row.bytes, timeouts=row.timeouts, failures=row.failures
    )
