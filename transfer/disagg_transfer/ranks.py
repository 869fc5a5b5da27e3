"""Which prefill ranks hold what one decode rank needs. Pure.

Tensor parallelism cuts a state along its heads: rank r of n holds the r-th of n equal runs. So with
P prefill and D decode ranks, one count dividing the other, a decode rank needs P/D whole shards,
or one of the D/P equal parts of a single shard, which D/P decode ranks then all read.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One prefill rank, and the part of its shard that the decode rank needs."""

    rank: int
    readers: int  # decode ranks that read this shard
    part: int
    parts: int


def divisible(prefill_ranks: int, decode_ranks: int) -> bool:
    """Whether shards of one side are whole numbers of shards of the other."""
    return max(prefill_ranks, decode_ranks) % min(prefill_ranks, decode_ranks) == 0


def sources(decode_rank: int, *, decode_ranks: int, prefill_ranks: int) -> tuple[Source, ...]:
    """In the order of the heads. The counts must be divisible."""
    if prefill_ranks >= decode_ranks:
        each = prefill_ranks // decode_ranks
        first = decode_rank * each
        return tuple(
            Source(rank=rank, readers=1, part=0, parts=1) for rank in range(first, first + each)
        )
    parts = decode_ranks // prefill_ranks
    rank, part = divmod(decode_rank, parts)
    return (Source(rank=rank, readers=parts, part=part, parts=parts),)


def partners(decode_rank: int, *, decode_ranks: int, prefill_ranks: int) -> frozenset[int]:
    """The prefill ranks that a decode rank compares layouts with: its sources, or where the counts
    do not divide one rank, to find that out with.
    """
    if not divisible(prefill_ranks, decode_ranks):
        return frozenset((min(decode_rank, prefill_ranks - 1),))
    found = sources(decode_rank, decode_ranks=decode_ranks, prefill_ranks=prefill_ranks)
    return frozenset(source.rank for source in found)
