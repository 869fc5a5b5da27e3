"""What the agents add to a request of 64 KiB, and what two of them cost while nothing happens."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disagg_bench.layouts import stage_rows
from disagg_bench.pair import Pair
from disagg_bench.processes import cpu_s, resident_bytes
from disagg_bench.rows import Row, at_most, median, percentile
from disagg_bench.shapes import small_state
from disagg_transfer.local import LocalAgent

_REQUESTS: Final = 300
_WARM_UP: Final = 20
_IDLE_S: Final = 10.0


def measure_small_requests(folder: Path) -> Iterator[Row]:
    with Pair(small_state(), folder) as pair:
        journeys, raw_s = [], []
        for repetition in range(_WARM_UP + _REQUESTS):
            journeys.append(pair.by_agents(repetition))
            raw_s.append(pair.by_one_read().total_s)
        # Against the median of raw, not pair by pair: a slow raw READ must not excuse ours.
        raw, journeys = median(raw_s[_WARM_UP:]), journeys[_WARM_UP:]
        added_ms = [(journey.total_s - raw) * 1e3 for journey in journeys]
        yield Row(name="small-64k/raw-read-p50", value=raw * 1e3, unit="ms")
        yield Row(
            name="small-64k/added-p50",
            value=percentile(added_ms, 0.5),
            unit="ms",
            target=at_most(1),
        )
        yield Row(
            name="small-64k/added-p99",
            value=percentile(added_ms, 0.99),
            unit="ms",
            target=at_most(5),
        )
        yield from stage_rows("small-64k", journeys)
        yield from _measure_idle((pair.prefill, pair.decode))


def _measure_idle(agents: tuple[LocalAgent, ...]) -> Iterator[Row]:
    """The worse of both sides; the arena is counted as far as it was touched."""
    before = [cpu_s(agent.process.pid) for agent in agents]
    time.sleep(_IDLE_S)
    spent = max(cpu_s(agent.process.pid) - then for agent, then in zip(agents, before, strict=True))
    yield Row(name="idle/cpu", value=spent / _IDLE_S * 100, unit="%", target=at_most(2))
    held = max(resident_bytes(agent.process.pid) for agent in agents)
    yield Row(name="idle/rss", value=held / 1e6, unit="MB", target=at_most(300))
