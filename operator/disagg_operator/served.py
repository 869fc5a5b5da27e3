"""Answers that routers counted, set beside the state that agents saw moved: pure.

An agent tells of the transfers that its engine asks for. An engine whose connector asks for none,
and that answers all the same, shows in no report: only the router, which counts each worker's
answers, knows that requests were served. A decode pod that answered `LEAST` of them while its
agent neither moved anything nor failed to is wrong, however Ready it is.

An answer is counted the moment it is given, while the report of its transfer may still be under
way: so what one look at a router brings counts against a pod from the next look on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.observe import AgentView
from disagg_transfer.contract import Report, Role

LEAST = 5
# A counter of sglang-router 0.3.2, by worker URL; the host of a worker begins with its pod's name.
_COUNTER = re.compile(r"^smg_worker_cb_outcomes_total\{([^}\n]*)\} ([0-9]{1,18})$", re.MULTILINE)
_WORKER = re.compile(r'(?:^|,)worker="https?://([^".:/]+)')

ByPod = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one router process has counted since its start, at look `number` of ours."""

    number: int
    answered: ByPod


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    look: Look
    fresh: ByPod  # answered between the look before and this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    routers: Mapping[str, _Counted] = field(default_factory=dict)  # by uid of their pods
    moved: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # decode pods' progress
    unmoved: ByPod = field(default_factory=dict)  # answers since a decode pod's state last moved
    witnessed: bool = False  # whether state was seen to move since this process began to look

    @property
    def idle(self) -> ByPod:
        """Decode pods that answer and move nothing, with the number of their answers."""
        return {pod: count for pod, count in self.unmoved.items() if count >= LEAST}


def answered(text: str) -> ByPod:
    """Successful answers by pod, from a router's metrics; lines of anything else are passed over."""
    found: dict[str, int] = {}
    for labels, count in _COUNTER.findall(text):
        worker = _WORKER.search(labels)
        if worker is not None and 'outcome="success"' in labels:
            found[worker[1]] = found.get(worker[1], 0) + int(count)
    return found


def advance(ledger: Ledger, looks: Mapping[str, Look], views: Mapping[str, AgentView]) -> Ledger:
    moved = dict(_progress(views))
    due, routers = _looked(ledger.routers, looks)
    unmoved = {pod: ledger.unmoved.get(pod, 0) + due.get(pod, 0) for pod in moved}
    going = {pod for pod, now in moved.items() if ledger.moved.get(pod) != now}
    return Ledger(
        routers={uid: _without(counted, going) for uid, counted in routers.items()},
        moved=moved,
        unmoved={pod: 0 if pod in going else count for pod, count in unmoved.items()},
        witnessed=ledger.witnessed or any(pod in ledger.moved for pod in going),
    )


def _looked(
    known: Mapping[str, _Counted], looks: Mapping[str, Look]
) -> tuple[ByPod, dict[str, _Counted]]:
    """What now counts against pods, and the routers' newest numbers."""
    due: dict[str, int] = {}
    routers = {}
    for uid, look in looks.items():
        before = known.get(uid)
        if before is None:
            routers[uid] = _Counted(look=look, fresh={})
        elif before.look.number == look.number:
            routers[uid] = before
        else:
            for pod, count in before.fresh.items():
                due[pod] = due.get(pod, 0) + count
            rise = {
                pod: count - before.look.answered.get(pod, 0)
                for pod, count in look.answered.items()
            }
            routers[uid] = _Counted(look=look, fresh=rise)
    return due, routers


def _without(counted: _Counted, pods: set[str]) -> _Counted:
    return replace(counted, fresh={p: n for p, n in counted.fresh.items() if p not in pods})


def _progress(views: Mapping[str, AgentView]) -> Iterator[tuple[str, tuple[str, int]]]:
    """A number that grows with each transfer that ends, of every decode agent that answers."""
    for pod, view in views.items():
        if view.report is not None and not view.error and view.report.role is Role.DECODE:
            yield pod, (view.report.incarnation, _ended(view.report))


def _ended(report: Report) -> int:
    return sum(row.transfers + row.failures for row in report.state_types)
