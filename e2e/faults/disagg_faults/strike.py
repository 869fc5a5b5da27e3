"""How each fault is done to a site, and undone whatever happens."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from disagg_faults.plan import DECODE, STANDING, Fault, Kind, Step
from disagg_faults.site import Site, until

_WIRE_S: Final = 1.0  # a fault that waits for bytes under way strikes after this without any


@contextmanager
def struck(site: Site, step: Step) -> Iterator[dict[Fault, float]]:
    """The step's faults beside what is done inside; all of them undone at the end.

    Yields when each one that comes and goes has struck (monotonic), filled in as they do.
    """
    struck_at: dict[Fault, float] = {}
    passing = [fault for fault in step.faults if fault.kind not in STANDING]
    standing = [fault for fault in step.faults if fault.kind in STANDING]
    for fault in standing:
        site.agents[fault.target].fault(fault.kind.value, fault.state_type)
    try:
        with ThreadPoolExecutor(max(1, len(passing))) as hands:
            strikes = [hands.submit(_strike, site, fault, struck_at) for fault in passing]
            yield struck_at
        for strike in strikes:
            strike.result()
    finally:
        for fault in standing:
            site.agents[fault.target].fault("lift")


def _strike(site: Site, fault: Fault, struck_at: dict[Fault, float]) -> None:
    time.sleep(fault.after_s)
    if fault.on_wire:
        until(lambda: _bytes_under_way(site), within_s=_WIRE_S, every_s=0.002)
    struck_at[fault] = time.monotonic()
    undo = _do(site, fault)
    try:
        time.sleep(fault.lasting_s)
    finally:
        undo()


def _do(site: Site, fault: Fault) -> Callable[[], Any]:
    """Do it; returns what undoes it."""
    agent, engine = site.agents[fault.target], site.engines[fault.target]
    undo: Callable[[], Any]
    match fault.kind:
        case Kind.KILL_AGENT:
            agent.process.kill()
            undo = agent.restart
        case Kind.STOP_AGENT | Kind.LATE_BYTES:
            undo = _stop(agent.process)
        case Kind.KILL_ENGINE:
            engine.kill()
            undo = engine.start
        case Kind.STOP_ENGINE:
            undo = _stop(engine.process)
        case Kind.LOSE_PACKETS:
            site.network.lose(fault.target, percent=fault.percent)
            undo = partial(site.network.heal, fault.target)
        case Kind.CORRUPT:
            assert fault.blow is not None
            site.relays[fault.target].strike(fault.blow)
            undo = site.relays[fault.target].lift
        case Kind.NOTHING | Kind.WITHHOLD | Kind.DUPLICATE | Kind.ZERO:
            raise AssertionError(f"{fault} does not come and go")
    return undo


def _stop(process: "subprocess.Popen[Any]") -> Callable[[], None]:
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def _bytes_under_way(site: Site) -> bool:
    try:
        return site.agents[DECODE].status().arena.used > 0
    except (OSError, ValueError):
        return True  # it is gone, in the middle of its answer at that: the oracle asks why
