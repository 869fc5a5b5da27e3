"""Rows of the benchmark table: a whole campaign, and lost packets found out."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from disagg_bench.rows import Row, at_least, at_most
from disagg_faults.blackhole import TRIALS, blackhole_s
from disagg_faults.campaign import run_campaign
from disagg_faults.errors import FaultsError
from disagg_faults.net import obstacle

REQUESTS: Final = 500
_SEED: Final = 1
_HEARTBEAT_LIMIT_S: Final = 3.0


class ViolationError(FaultsError):
    """The campaign's first violation, with its seed."""


def fault_measurements(folder: Path) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """By name; none where namespaces cannot be made, which is said."""
    why = obstacle()
    if why:
        _say(f"bench: blackhole and campaign are left out: {why}")
        return
    yield "blackhole", partial(blackhole_rows, folder / "blackhole")
    yield "campaign", partial(campaign_rows, folder / "campaign")


def campaign_rows(folder: Path, *, seed: int = _SEED, requests: int = REQUESTS) -> Iterator[Row]:
    """Raises ViolationError where anything but a row short of its target came out."""
    tally = run_campaign(seed=seed, requests=requests, folder=folder, say=_say)
    if tally.violations:
        raise ViolationError(f"seed {seed}: {'; '.join(tally.violations)}")
    yield _row("requests", tally.requests)
    yield Row(name="campaign/exact", value=tally.exact, unit="req", target=at_least(requests // 2))
    yield _row("failed-by-cause", tally.failed)
    for cause, count in tally.causes.most_common():
        yield _row(f"failed-{cause.replace(' ', '-')}", count)
    for name, count in (("hangs", tally.hangs), ("leaks", tally.leaks), ("wrong", tally.wrong)):
        yield Row(name=f"campaign/{name}", value=count, unit="req", target=at_most(0))
    yield Row(name="campaign/heal-worst", value=tally.heal_s, unit="s")


def blackhole_rows(folder: Path) -> Iterator[Row]:
    yield Row(
        name=f"detection/blackhole-worst-of-{TRIALS}",
        value=max(blackhole_s(folder)),
        unit="s",
        target=at_most(_HEARTBEAT_LIMIT_S + 1),
    )


def _row(name: str, value: float) -> Row:
    return Row(name=f"campaign/{name}", value=value, unit="req")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
