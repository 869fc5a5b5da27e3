"""`python -m disagg_bench`: every row as it is measured, and build/bench.json.

Rows that are short of their target are said and do not fail the run; a measurement that could not
be made, or a payload that came out wrong, does.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from disagg_bench.crowd import measure_crowd
from disagg_bench.detection import measure_detection
from disagg_bench.endurance import measure_endurance
from disagg_bench.fleet import measure_fleet
from disagg_bench.layouts import measure_layout, measure_layout_and_floors
from disagg_bench.machine import machine_facts
from disagg_bench.pair import TRANSPORT
from disagg_bench.resource import measure_crd
from disagg_bench.rows import Row, Table, document
from disagg_bench.shapes import deepseek_v32, gpt_oss, qwen3_next
from disagg_bench.small_request import measure_small_requests
from disagg_faults.rows import fault_measurements

ROOT: Final = Path(__file__).resolve().parents[3]
_NAME_WIDTH: Final = 40
_SHAPES: Final = (deepseek_v32(), qwen3_next(), gpt_oss(64), gpt_oss(16), gpt_oss(1))

Measurement = Callable[[], Iterator[Row]]


def main(argv: Sequence[str] | None = None) -> int:
    words = _parse(argv)
    # Ended by a signal, the agents are ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.environ.update(TRANSPORT)  # before any NIXL agent, here or in a child
    table = Table(name_width=_NAME_WIDTH)
    rows: list[Row] = []
    failed: list[str] = []
    facts, started = machine_facts(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        print(table.line(), flush=True)
        for name, measure in _measurements(Path(folder)):
            if words.only not in name:
                continue
            try:
                for row in measure():
                    rows.append(row)
                    print(table.line(row), flush=True)
            except Exception as error:  # noqa: BLE001  (outermost guard: the other rows still count)
                failed.append(f"{name}: {type(error).__name__}: {error}")
    facts |= {"load_after": machine_facts()["load"], "seconds": round(time.monotonic() - started)}
    _write(words.json, json.dumps(document(rows, facts), indent=2))
    for line in failed:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if failed else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="disagg_bench", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="measurements whose name has it")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json")
    return parser.parse_args(argv)


def _measurements(folder: Path) -> Iterator[tuple[str, Measurement]]:
    yield "crd", partial(measure_crd, ROOT)
    first, *rest = _SHAPES
    yield first.name, partial(measure_layout_and_floors, first, folder / first.name)
    for shape in rest:
        yield shape.name, partial(measure_layout, shape, folder / shape.name)
    yield "small", partial(measure_small_requests, folder / "small")
    yield "crowd", partial(measure_crowd, folder / "crowd")
    yield "endurance", partial(measure_endurance, folder / "endurance")
    yield "detection", partial(measure_detection, folder / "detection")
    yield from fault_measurements(folder / "faults")
    yield "fleet", partial(measure_fleet, folder / "fleet")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
