"""Steps that say that they go on: a line at the start, one each 5 s, and one with the time at the end."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TICK_S = 5.0


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, say each 5 s that it goes on, and print its seconds at the end."""
    print(f"==> {title}", flush=True)
    started, ended = time.monotonic(), threading.Event()
    ticker = threading.Thread(target=_tick, args=(title, started, ended), daemon=True)
    ticker.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    finally:
        ended.set()
        ticker.join()
        print(f"    {outcome} {time.monotonic() - started:.1f} s", flush=True)


def _tick(title: str, started: float, ended: threading.Event) -> None:
    while not ended.wait(TICK_S):
        print(f"    ... {title}: {time.monotonic() - started:.0f} s", flush=True)


def say(text: str) -> None:
    """Print lines indented under the current step."""
    for line in text.rstrip().splitlines():
        print(f"    {line}", flush=True)
