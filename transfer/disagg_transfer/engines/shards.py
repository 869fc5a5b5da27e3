"""Reslicing state between unequal tensor parallelism: plain arithmetic, then a copy at scatter.

One axis of a tensor is split over the ranks. It is one or more groups laid end to end, a group is
`heads` units of `width` entries, and every group is split on its own: rank r of n holds the heads
[r * heads / n, (r + 1) * heads / n) of each; where ranks outnumber heads, n / heads neighbors hold
the same one. Keys and values are one group of heads; the temporal state of a recurrent layer too.
Its convolution is [q, k, v] (or [x, B, C]), three groups: one contiguous slice of that axis mixes
them, which corrupted about one sample in a thousand before anybody saw it (sglang#22060).
"""

from dataclasses import dataclass

import torch

from disagg_transfer.errors import ReshardingError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """One of the ranks that share a tensor."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ValueError(f"rank {self.number} is not one of {self.of}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A stretch of the axis that is split by head; counts of the whole model, not of one rank."""

    heads: int
    width: int = 1  # entries of one head along the axis

    def held(self, rank: Rank) -> range:
        """The heads that a rank holds. Raises ReshardingError when they cannot be shared out."""
        if self.heads % rank.of == 0:
            each = self.heads // rank.of
            return range(rank.number * each, (rank.number + 1) * each)
        if rank.of % self.heads == 0:
            head = rank.number * self.heads // rank.of
            return range(head, head + 1)
        raise ReshardingError(
            f"{self.heads} heads cannot be shared out over {rank.of} ranks: neither divides the "
            "other; choose another tensor parallelism"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which axis of one item's tensor is split (the page or slot axis is not counted), and how.

    No groups: every rank holds the whole tensor.
    """

    axis: int = 0
    groups: tuple[Group, ...] = ()

    def length(self, rank: Rank) -> int:
        """Entries of the axis that a rank holds; of a split without groups there are none."""
        return sum(len(group.held(rank)) * group.width for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Entries that the source rank and the target rank both hold, at their own places."""

    source: int
    target: int
    length: int


def runs(split: Split, *, source: Rank, target: Rank) -> tuple[Run, ...]:
    """What of the source's axis goes where in the target's; empty when they share no head."""
    found: list[Run] = []
    source_at = target_at = 0
    for group in split.groups:
        ours, theirs = group.held(source), group.held(target)
        first, end = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
        if first < end:
            found.append(
                Run(
                    source=source_at + (first - ours.start) * group.width,
                    target=target_at + (first - theirs.start) * group.width,
                    length=(end - first) * group.width,
                )
            )
        source_at += len(ours) * group.width
        target_at += len(theirs) * group.width
    return tuple(found)


def shard(full: torch.Tensor, split: Split, *, rank: Rank) -> torch.Tensor:
    """What a rank holds of [items, *shape of the whole tensor]: a copy of its heads."""
    if not split.groups:
        return full.clone()
    axis, whole = split.axis + 1, Rank(number=0, of=1)
    if full.shape[axis] != split.length(whole):
        raise ValueError(
            f"axis {split.axis} has {full.shape[axis]} entries, its groups {split.length(whole)}"
        )
    parts = runs(split, source=whole, target=rank)
    return torch.cat([full.narrow(axis, run.source, run.length) for run in parts], axis)


def reslice(
    payload: torch.Tensor, out: torch.Tensor, split: Split, *, source: Rank, target: Rank
) -> None:
    """Copy what the source's [items, *its shape] holds of the target's [items, *its shape].

    Several sources fill one target by a call each. Raises ValueError when a tensor is not that of
    its rank. For paged pools see Pages.scatter, which does the same row by row.
    """
    if not split.groups:
        out.copy_(payload)
        return
    axis = split.axis + 1
    for tensor, rank in ((payload, source), (out, target)):
        if tensor.shape[axis] != split.length(rank):
            raise ValueError(
                f"axis {split.axis} has {tensor.shape[axis]} entries, rank {rank.number} of "
                f"{rank.of} holds {split.length(rank)}"
            )
    for run in runs(split, source=source, target=target):
        there = out.narrow(axis, run.target, run.length)
        there.copy_(payload.narrow(axis, run.source, run.length))
