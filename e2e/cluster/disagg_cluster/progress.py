"""Tells a human that a long step goes on. Goes to stderr: stdout belongs to what a command answers."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ANNOUNCE_AFTER_S = 2.0
REPEAT_EVERY_S = 20.0


def say(text: str) -> None:
    print(f"cluster: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(
    what: str,
    *,
    tell: Callable[[str], None] = say,
    announce_after_s: float = ANNOUNCE_AFTER_S,
    repeat_every_s: float = REPEAT_EVERY_S,
) -> Iterator[None]:
    """Silent when short; else says that it goes on, and its time at the end."""
    begun = time.monotonic()
    over = threading.Event()
    announced = threading.Event()

    def announce() -> None:
        wait_s = announce_after_s
        while not over.wait(wait_s):
            seconds = time.monotonic() - begun
            tell(f"{what} ... {seconds:.0f} s so far" if announced.is_set() else f"{what} ...")
            announced.set()
            wait_s = repeat_every_s

    thread = threading.Thread(target=announce, name="progress", daemon=True)
    thread.start()
    outcome = "failed after "
    try:
        yield
        outcome = ""
    finally:
        over.set()
        thread.join()
        if announced.is_set():
            tell(f"{what} ... {outcome}{time.monotonic() - begun:.0f} s")
