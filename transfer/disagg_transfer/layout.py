"""Fingerprints of two sides, compared field by field before any request is tried."""

from collections.abc import Iterator
from dataclasses import dataclass

from disagg_transfer.protocol import ComponentLayout, Fingerprint
from disagg_transfer.registry import LAYOUT_FIELDS, lookup

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

    def __str__(self) -> str:
        return f"{self.field}: prefill has {self.prefill}, decode has {self.decode}"


def compare(prefill: Fingerprint, decode: Fingerprint) -> tuple[Difference, ...]:
    """Every difference; the two sides may exchange requests only when there is none."""
    return tuple(_differences(prefill, decode))


def _differences(prefill: Fingerprint, decode: Fingerprint) -> Iterator[Difference]:
    if prefill.model != decode.model:
        yield Difference(field="model", prefill=prefill.model, decode=decode.model)
    if prefill.ranks != decode.ranks:
        yield Difference(field="ranks", prefill=str(prefill.ranks), decode=str(decode.ranks))
    if prefill.page_size != decode.page_size:
        yield Difference(
            field="pageSize", prefill=str(prefill.page_size), decode=str(decode.page_size)
        )
    ours = {part.name: part for part in prefill.components}
    theirs = {part.name: part for part in decode.components}
    for name in sorted(ours.keys() | theirs.keys()):
        yield from _component_differences(name, ours.get(name), theirs.get(name))


def _component_differences(
    name: str, prefill: ComponentLayout | None, decode: ComponentLayout | None
) -> Iterator[Difference]:
    path = f"components[{name}]"
    if prefill is None or decode is None:
        yield Difference(field=path, prefill=_described(prefill), decode=_described(decode))
        return
    may_differ = lookup(prefill.state_type).may_differ
    for field in LAYOUT_FIELDS:
        ours, theirs = getattr(prefill, field), getattr(decode, field)
        if ours != theirs and field not in may_differ:
            yield Difference(
                field=f"{path}.{_WIRE_NAMES.get(field, field)}",
                prefill=str(ours),
                decode=str(theirs),
            )


def _described(part: ComponentLayout | None) -> str:
    return _ABSENT if part is None else f"state type {part.state_type}"
