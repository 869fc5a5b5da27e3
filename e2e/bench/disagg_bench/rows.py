"""What the benchmark says: rows with a target or without, as a table and as JSON. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

_HEADER: Final = ("name", "value", "unit", "target", "verdict")


class Bound(StrEnum):
    AT_LEAST = ">="
    AT_MOST = "<="
    BELOW = "<"


class Verdict(StrEnum):
    OK = "ok"
    SHORT = "short"
    NONE = "-"  # a row without a target: a floor, a stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    bound: Bound
    limit: float

    def holds(self, value: float) -> bool:
        match self.bound:
            case Bound.AT_LEAST:
                return value >= self.limit
            case Bound.AT_MOST:
                return value <= self.limit
            case Bound.BELOW:
                return value < self.limit

    def __str__(self) -> str:
        return f"{self.bound}{self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    name: str  # no spaces, so that a line splits into its columns
    value: float
    unit: str
    target: Target | None = None

    @property
    def verdict(self) -> Verdict:
        if self.target is None:
            return Verdict.NONE
        return Verdict.OK if self.target.holds(self.value) else Verdict.SHORT

    @property
    def cells(self) -> tuple[str, ...]:
        target = "-" if self.target is None else str(self.target)
        return (self.name, _digits(self.value), self.unit, target, self.verdict)


class Table:
    """Lines as they are measured: the columns are wide enough for the names known beforehand."""

    def __init__(self, *, name_width: int) -> None:
        self._widths = (name_width, 9, 6, 8, 0)

    def line(self, row: Row | None = None) -> str:
        """One row's line, or the header's."""
        cells = _HEADER if row is None else row.cells
        padded = (
            cell.rjust(width) if at == 1 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        )
        return "  ".join(padded).rstrip()


def at_least(limit: float) -> Target:
    return Target(bound=Bound.AT_LEAST, limit=limit)


def at_most(limit: float) -> Target:
    return Target(bound=Bound.AT_MOST, limit=limit)


def below(limit: float) -> Target:
    return Target(bound=Bound.BELOW, limit=limit)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -int(-share * len(ordered) // 1))
    return ordered[rank - 1]


def speed_ratio(*, ours_s: Sequence[float], theirs_s: Sequence[float]) -> float:
    """How many times faster ours is, by the medians of the same work."""
    return median(theirs_s) / median(ours_s)


def document(rows: Sequence[Row], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a run."""
    return {
        "version": 1,
        "machine": dict(machine),
        "rows": [{**asdict(row), "target": _cell(row), "verdict": row.verdict} for row in rows],
    }


def _cell(row: Row) -> str | None:
    return None if row.target is None else str(row.target)


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
