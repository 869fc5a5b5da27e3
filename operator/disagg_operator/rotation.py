"""Which keys the agents have, and when they get new ones: pure.

Generation g of a revision's key file has key g first and key g - 1 second. Kubelets bring a changed
Secret to their pods at different times, up to some minutes apart. Meanwhile agents have generation
g or g + 1; those share key g, and a handshake takes the first key that both sides hold. So a new
key may be the first one at once, as long as a generation lasts longer than the kubelets take: an
hour or more, as the schema has it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from disagg_operator.api.quantities import duration_seconds

NEVER = "Never"
FIRST_GENERATION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What was written last; `key` names the newest key of the update revision."""

    generation: int
    key: str
    since: float  # Unix seconds

    def due_at(self, rotation: str) -> float | None:
        return None if rotation == NEVER else self.since + duration_seconds(rotation)


def generation_of(keys: Keys | None) -> int:
    return FIRST_GENERATION if keys is None else keys.generation


def generation_due(before: Keys | None, *, rotation: str, now: float) -> int:
    """The one that pods should have now. One more than before at most, however late this is asked."""
    due_at = None if before is None else before.due_at(rotation)
    late = due_at is not None and now >= due_at
    return generation_of(before) + late


def keys_after(
    before: Keys | None,
    *,
    update: str,
    asked: Mapping[str, int],
    written: Mapping[str, str],
    kept: Collection[str],
    now: float,
) -> Keys | None:
    """What a pass came to: the generation asked for of each revision, and the newest keys written.

    `kept` are those whose Secret cannot be changed; a period later it is tried again.
    """
    if update not in asked or not asked.keys() <= written.keys():
        return before
    generation = asked[update]
    moved = before is None or before.generation != generation
    if before is not None and moved and update in kept:
        return replace(before, since=now)
    since = now if before is None or moved else before.since
    return Keys(generation=generation, key=written[update], since=since)
