"""Which pairs of pods sample each other, how much, and when again. Pure: time comes in."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from disagg_transfer.contract import PreflightMode, TransportPolicy

MAX_PAIRS: Final = 64  # of a deployment, that all sample each other
MAX_SAMPLE_BYTES: Final = 4 << 20  # of one component
_ARENA_PARTS: Final = 16  # of an arena, one of which is the most that a sample takes at a time
JITTER: Final = 0.2
RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightSettings:
    mode: PreflightMode = PreflightMode.OBSERVE
    policy: TransportPolicy = TransportPolicy.PREFER_RDMA
    every_s: float = 30.0  # between canaries of a pair that moves nothing
    cold_s: float = 60.0  # a first read over RDMA was once seen to take 38 s
    warm_s: float = 10.0


def spanning_pairs(
    prefills: Iterable[str], decodes: Iterable[str], *, limit: int = MAX_PAIRS
) -> frozenset[tuple[str, str]]:
    """(prefill, decode) pairs to sample: all of them up to `limit`, else a set in which every pod
    is, of `limit` pairs or of as many as that takes. Everybody who sees the same pods finds the
    same pairs.
    """
    rows, columns = sorted(set(prefills)), sorted(set(decodes))
    short, long = sorted((rows, columns), key=len)
    diagonals = (
        (name, short[(place + step) % len(short)])
        for step in range(len(short))
        for place, name in enumerate(long)
    )
    wanted = max(limit, len(long))
    chosen = itertools.islice(diagonals, wanted)
    return frozenset(pair if long is rows else pair[::-1] for pair in chosen)


def sample_sizes(item_bytes: Mapping[str, int], *, arena_bytes: int) -> dict[str, int]:
    """Bytes to pull for each component: as many whole items as fit, a part of one that does not.
    One without bytes is left out, unless there is no other: the peer is still worth a look.
    """
    most = min(MAX_SAMPLE_BYTES, max(1, arena_bytes // _ARENA_PARTS))
    sizes = {name: most // nbytes * nbytes or most for name, nbytes in item_bytes.items() if nbytes}
    return sizes or {"none": most}


def next_canary(now: float, *, every_s: float, random: Random) -> float:
    return now + every_s * random.uniform(1 - JITTER, 1 + JITTER)


def next_retry(now: float, *, failures: int, random: Random) -> float:
    """After the `failures`-th failure in a row."""
    pause = RETRY_S[min(failures, len(RETRY_S)) - 1]
    return now + pause * random.uniform(1 - JITTER, 1 + JITTER)


def pattern(seed: bytes, nbytes: int) -> bytes:
    """Bytes that both sides make of a seed, no two parts of it alike (13 ms for 4 MiB)."""
    return hashlib.shake_128(seed).digest(nbytes)
