"""Fingerprints of two sides, compared field by field before any request is tried."""

from collections.abc import Iterator
from dataclasses import dataclass

from disagg_transfer.protocol import ComponentLayout, Fingerprint
from disagg_transfer.ranks import divisible
from disagg_transfer.registry import LAYOUT_FIELDS, Resharding, StateType, lookup

_ABSENT = "(absent)"
_WIRE_NAMES = {
    "state_type": "stateType",
    "type_version": "typeVersion",
    "item_bytes": "itemBytes",
    "page_size": "pageSize",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    field: str
    prefill: str
    decode: str
    rule: str = ""  # why it matters, where the values alone do not say it

    @property
    def named(self) -> str:
        """The field, with the rule that it breaks."""
        return f"{self.field} ({self.rule})" if self.rule else self.field

    def __str__(self) -> str:
        return f"{self.named}: prefill has {self.prefill}, decode has {self.decode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCounts:
    prefill: int
    decode: int


def compare(prefill: Fingerprint, decode: Fingerprint) -> tuple[Difference, ...]:
    """Every difference; the two sides may exchange requests only when there is none."""
    return tuple(_differences(prefill, decode))


def _differences(prefill: Fingerprint, decode: Fingerprint) -> Iterator[Difference]:
    if prefill.model != decode.model:
        yield Difference(field="model", prefill=prefill.model, decode=decode.model)
    counts = RankCounts(prefill=prefill.ranks, decode=decode.ranks)
    if not divisible(counts.prefill, counts.decode):
        yield Difference(
            field="ranks",
            prefill=str(counts.prefill),
            decode=str(counts.decode),
            rule="one must divide the other",
        )
        counts = RankCounts(prefill=1, decode=1)  # the components would say it once more each
    if prefill.page_size != decode.page_size:
        yield Difference(
            field="pageSize", prefill=str(prefill.page_size), decode=str(decode.page_size)
        )
    ours = {part.name: part for part in prefill.components}
    theirs = {part.name: part for part in decode.components}
    for name in sorted(ours.keys() | theirs.keys()):
        yield from _component_differences(name, ours.get(name), theirs.get(name), counts)


def _component_differences(
    name: str, prefill: ComponentLayout | None, decode: ComponentLayout | None, counts: RankCounts
) -> Iterator[Difference]:
    path = f"components[{name}]"
    if prefill is None or decode is None:
        yield Difference(field=path, prefill=_described(prefill), decode=_described(decode))
        return
    entry = lookup(prefill.state_type)
    refusal = entry.why_not(prefill_ranks=counts.prefill, decode_ranks=counts.decode)
    for field in LAYOUT_FIELDS:
        ours, theirs = getattr(prefill, field), getattr(decode, field)
        if ours == theirs or field in entry.may_differ:
            continue
        if field == "item_bytes" and (refusal or _is_share(entry, prefill, decode, counts)):
            continue
        yield Difference(
            field=f"{path}.{_WIRE_NAMES.get(field, field)}", prefill=str(ours), decode=str(theirs)
        )
    if refusal is not None:
        yield Difference(
            field=f"{path}.ranks",
            prefill=str(counts.prefill),
            decode=str(counts.decode),
            rule=refusal,
        )


def _is_share(
    entry: StateType, prefill: ComponentLayout, decode: ComponentLayout, counts: RankCounts
) -> bool:
    """Whether an item of the side of fewer ranks is several of the other's.

    As many as the counts' ratio, or fewer where ranks outnumber heads: neighbors then hold the
    same one.
    """
    if entry.resharding not in (Resharding.HEADS, Resharding.CONV_GROUPS):
        return False
    whole, share = prefill.item_bytes, decode.item_bytes
    if counts.prefill > counts.decode:
        whole, share = share, whole
    ratio = max(counts.prefill, counts.decode) // min(counts.prefill, counts.decode)
    return share > 0 and whole % share == 0 and ratio % (whole // share) == 0


def _described(part: ComponentLayout | None) -> str:
    return _ABSENT if part is None else f"state type {part.state_type}"
