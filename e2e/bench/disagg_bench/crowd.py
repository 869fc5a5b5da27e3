"""Many requests in flight against one large one of as many bytes: throughput, and fairness."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disagg_bench.layouts import REPETITIONS
from disagg_bench.pair import Pair
from disagg_bench.rows import Row, at_least, at_most, median, speed_ratio
from disagg_bench.shapes import crowd

REQUESTS: Final = 64


def measure_crowd(folder: Path) -> Iterator[Row]:
    one_s, all_s, spread = [], [], []
    with Pair(crowd(), folder) as pair:
        for repetition in range(REPETITIONS + 1):
            one = pair.by_agents(repetition).total_s
            each = pair.by_crowd(repetition, requests=REQUESTS)
            if repetition:  # the first pays for connections and fresh memory
                one_s.append(one)
                all_s.append(max(each))
                spread.append(max(each) / median(each))
    yield Row(
        name=f"crowd/{REQUESTS}-vs-one-request",
        value=speed_ratio(ours_s=all_s, theirs_s=one_s),
        unit="x",
        target=at_least(0.9),
    )
    yield Row(
        name=f"crowd/{REQUESTS}-slowest-vs-median", value=max(spread), unit="x", target=at_most(3)
    )
    rate = crowd().nbytes / median(all_s) / 1e9
    yield Row(name=f"crowd/{REQUESTS}-agents", value=rate, unit="GB/s")
