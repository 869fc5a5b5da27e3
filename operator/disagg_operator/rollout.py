"""How far a rollout may go: numbers of groups, from numbers of groups. Pure.

Both roles move in the same `steps`, as many as the larger role has groups, so that either revision
keeps a part of both roles for as long as it has any: pods of two revisions never serve a request
together, and prefill groups without decode groups are no capacity. `surge` must be at least 1: a
role of one group could only be replaced by taking all the other role's capacity with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

SURGE_FROM: Final = 1000  # the most replicas that a role may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Groups of one role: `serving` are ready and reached by a router, `present` have any pod."""

    present: int = 0
    serving: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCounts:
    """One role. `surge` and `unavailable` are groups above and below `desired`."""

    desired: int
    surge: int
    unavailable: int
    old: Side
    new: Side
    new_ready: int  # also those that no router reaches yet

    @property
    def floor(self) -> int:
        """Groups that must go on serving: less where capacity has fallen below by itself."""
        return min(self.desired - self.unavailable, self.new.serving + self.old.serving)

    def spare(self, old: int) -> bool:
        return self.new.serving + min(old, self.old.serving) >= self.floor

    def kept(self) -> int:
        """The fewest old groups, while the old revision keeps a part of both roles."""
        return max(1, self.floor - self.new.serving)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Groups of the new and the old revision by role, and how many steps are done."""

    new: Mapping[str, int]
    old: Mapping[str, int]
    step: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """One role. `groups` shall exist and `routed` be known to the router; of those of an older
    template `broken` go now, and `leaving` once no router sends to them.
    """

    groups: tuple[int, ...]
    routed: tuple[int, ...]
    outdated: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    done: int = 0  # groups that are ready and of the newest template

    @property
    def surge(self) -> tuple[int, ...]:
        return tuple(group for group in self.groups if group >= SURGE_FROM)

    @property
    def asked(self) -> int:
        return len(self.groups) - len(self.surge)

    @property
    def active(self) -> bool:
        return bool(self.outdated or self.surge)


def advance(roles: Mapping[str, RoleCounts], *, skew: int, stalled: bool = False) -> Targets:
    """The next targets; a rollout that is `stalled` grows no further and takes nothing away."""
    steps = max((role.desired for role in roles.values()), default=0)
    reached = _largest(steps, lambda k: all(_reached(role, k, steps) for role in roles.values()))
    fresh = all(not role.old.present for role in roles.values())
    limit = steps if fresh else min(steps, reached + skew)
    grown = _largest(limit, lambda k: all(_fits(role, k, steps) for role in roles.values()))
    over = all(role.spare(0) for role in roles.values())
    if stalled and not fresh:
        grown = 0
    return Targets(
        new={
            name: max(_share(grown, steps, role), min(role.new.present, role.desired))
            for name, role in roles.items()
        },
        old={
            name: role.old.present if stalled else 0 if over else role.kept()
            for name, role in roles.items()
        },
        step=reached,
        steps=steps,
    )


def _share(step: int, steps: int, role: RoleCounts) -> int:
    """Groups of the new revision after `step` steps, rounded up: never a role without any."""
    return -(-step * role.desired // steps) if steps else 0


def _reached(role: RoleCounts, step: int, steps: int) -> bool:
    return role.new_ready >= _share(step, steps, role)


def _fits(role: RoleCounts, step: int, steps: int) -> bool:
    wanted = max(role.new.present, _share(step, steps, role))
    return wanted + role.old.present <= role.desired + role.surge


def _largest(limit: int, holds: Callable[[int], bool]) -> int:
    """The largest of 0..limit for which it holds; 0 when for none."""
    return next((k for k in range(limit, 0, -1) if holds(k)), 0)
