"""One input to one parser, watched: what it raises, how long it takes, what memory it asks for."""

import time
import tracemalloc
from dataclasses import dataclass
from typing import Final

from disagg_fuzz.targets import Target

# A parsed 4 MB frame of 256-entry lists is about 20 times its bytes; a bomb would be thousands.
MEMORY_PER_BYTE: Final = 40
MEMORY_FLOOR: Final = 1 << 20
SECONDS: Final = 2.0  # the longest input takes 0.1 s; a loaded machine is slow


@dataclass(frozen=True, slots=True, kw_only=True)
class Find:
    target: str
    data: bytes
    what: str


def watch(target: Target, data: bytes) -> Find | None:
    """None when the input was parsed or refused as it should be."""
    data = data[: target.max_bytes]
    wrong = _run(target, data)
    return Find(target=target.name, data=data, what=wrong) if wrong else None


def _run(target: Target, data: bytes) -> str:
    tracemalloc.start()
    start = time.perf_counter()
    wrong = ""
    try:
        target.parse(data)
    except target.refusals as error:
        if len(str(error)) > MEMORY_FLOOR // 256:
            wrong = f"a message of {len(str(error))} characters"
    except Exception as error:  # noqa: BLE001  (what is being looked for)
        wrong = f"{type(error).__name__}: {error!s:.200}"
    took, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if took > SECONDS:
        wrong = wrong or f"took {took:.1f} s"
    if peak > MEMORY_FLOOR + MEMORY_PER_BYTE * len(data):
        wrong = wrong or f"asked for {peak} bytes of memory for an input of {len(data)}"
    return wrong
