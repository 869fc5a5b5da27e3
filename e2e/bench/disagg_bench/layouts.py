"""Rows of a shape: the agents against one contiguous READ and against plain NIXL by pages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from disagg_bench.pair import Journey, OneRead, Pair
from disagg_bench.rows import Row, Verdict, at_least, median, speed_ratio
from disagg_bench.shapes import Shape

REPETITIONS: Final = 5
_OVER_ONE_READ: Final = 0.8
_STAGES: Final = ("reserve", "gather", "offer", "wait", "scatter", "tail")


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds of every repetition but the first, which pays for connections and fresh memory."""

    journeys: list[Journey] = field(default_factory=list)
    one_read: list[OneRead] = field(default_factory=list)
    paged: list[float] = field(default_factory=list)
    memcpy: list[float] = field(default_factory=list)
    socket: list[float] = field(default_factory=list)
    digest: list[float] = field(default_factory=list)


def measure_layout(shape: Shape, folder: Path) -> Iterator[Row]:
    times = _measure(shape, folder, floors=False)
    yield from _compared(shape, times)


def measure_layout_and_floors(shape: Shape, folder: Path) -> Iterator[Row]:
    """The same, and what the machine does at best with as many bytes in the same minute."""
    times = _measure(shape, folder, floors=True)
    yield _rate("floor/memcpy", shape, times.memcpy)
    yield _rate("floor/tcp-socket", shape, times.socket)
    yield _rate("floor/digest", shape, times.digest)
    yield from _compared(shape, times)


def stage_rows(name: str, journeys: Sequence[Journey]) -> Iterator[Row]:
    for stage in _STAGES:
        seconds = median([getattr(journey, f"{stage}_s") for journey in journeys])
        yield Row(name=f"{name}/stage-{stage}", value=seconds * 1e3, unit="ms")


def _measure(shape: Shape, folder: Path, *, floors: bool) -> _Times:
    """In turn, so that a slow moment of the machine is everybody's."""
    with Pair(shape, folder) as pair:
        for repetition in range(REPETITIONS + 1):
            if repetition <= 1:
                times = _Times()
            times.journeys.append(pair.by_agents(repetition))
            times.one_read.append(pair.by_one_read())
            times.paged.append(pair.by_paged_read(repetition))
            if floors:
                times.memcpy.append(pair.by_memcpy())
                times.socket.append(pair.by_socket())
                times.digest.append(pair.digest_s())
    return times


def _compared(shape: Shape, times: _Times) -> Iterator[Row]:
    totals = [journey.total_s for journey in times.journeys]
    one_read = [read.total_s for read in times.one_read]
    rows = (
        Row(
            name=f"{shape.name}/vs-one-read",
            value=speed_ratio(ours_s=totals, theirs_s=one_read),
            unit="x",
            target=at_least(_OVER_ONE_READ),
        ),
        Row(
            name=f"{shape.name}/vs-paged-nixl",
            value=speed_ratio(ours_s=totals, theirs_s=times.paged),
            unit="x",
            target=at_least(shape.over_paged),
        ),
    )
    yield from rows
    yield _rate(f"{shape.name}/agents", shape, totals)
    yield _rate(f"{shape.name}/one-read", shape, one_read)
    yield _rate(f"{shape.name}/paged-nixl", shape, times.paged)
    yield _cpu(f"{shape.name}/agents-cpu", [journey.cpu_s for journey in times.journeys])
    yield _cpu(f"{shape.name}/one-read-cpu", [read.cpu_s for read in times.one_read])
    if any(row.verdict is Verdict.SHORT for row in rows):
        yield from stage_rows(shape.name, times.journeys)


def _cpu(name: str, seconds: Sequence[float]) -> Row:
    return Row(name=name, value=median(seconds) * 1e3, unit="ms")


def _rate(name: str, shape: Shape, seconds: Sequence[float]) -> Row:
    return Row(name=name, value=shape.nbytes / median(seconds) / 1e9, unit="GB/s")
