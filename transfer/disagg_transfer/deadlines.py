"""How long each stage may take, and which clock of a request runs out next. Pure: time comes in."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_transfer.contract import Stage
from disagg_transfer.registry import entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. A state type's own setting wins over the stage's, the stage's over the default."""

    default_s: float
    stages: Mapping[Stage, float]
    state_types: Mapping[str, float]

    def limit(self, stage: Stage, state_type: str | None = None) -> float:
        if state_type is not None and state_type in self.state_types:
            return self.state_types[state_type]
        entry = entries().get(state_type or "")
        if entry is not None and entry.deadline_s is not None and stage not in self.stages:
            return entry.deadline_s
        return self.stages.get(stage, self.default_s)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Due:
    at: float
    started: float
    stage: Stage
    component: str | None = field(compare=False)

    @property
    def limit_s(self) -> float:
        return self.at - self.started


def overdue(due: Due) -> str:
    """What has not happened in time, in plain words."""
    component = f"component {due.component}" if due.component else "the request"
    words = {
        Stage.BOOTSTRAP: "the peer was not met",
        Stage.QUEUE: "the peer, asked for the request, has offered nothing of it",
        Stage.NOTIFY: f"no offer of {component}",
        Stage.ALLOCATE: f"the arena had no room for a chunk of {component}",
        Stage.POST: f"NIXL did not take the read of {component}",
        Stage.WIRE: f"{component} did not arrive whole",
        Stage.SCATTER: "the engine did not take the request out of the arena and release it",
    }
    if due.stage is Stage.WIRE and due.component is None:
        words[Stage.WIRE] = "everything arrived, but the peer did not confirm that it is valid"
    return f"{words[due.stage]} within {due.limit_s:g} s"


class StageClocks:
    """The running clocks of one request, by stage and by what each runs for: a component, the
    offer of one chunk, or with None the request.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[Stage, str | int | None], Due] = {}

    def start(
        self,
        stage: Stage,
        component: str | None = None,
        *,
        now: float,
        limit_s: float,
        offer: int | None = None,
    ) -> None:
        self._running[stage, component if offer is None else offer] = Due(
            at=now + limit_s, started=now, stage=stage, component=component
        )

    def stop(self, stage: Stage, key: str | int | None = None) -> None:
        self._running.pop((stage, key), None)

    def stop_all(self) -> None:
        self._running.clear()

    @property
    def earliest(self) -> Due | None:
        return min(self._running.values(), default=None)
