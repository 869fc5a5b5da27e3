"""The open registry of state types: what one is called and how its indices select bytes.

A new type is one more entry. Nothing else in the package lists the names.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from disagg_transfer.contract import STATE_TYPE_ALIASES
from disagg_transfer.errors import UnknownStateTypeError


class Selection(StrEnum):
    """Which items of a request belong to a component of this type."""

    PAGES = "pages"  # every page of [0, sequence length)
    WINDOW_PAGES = "windowPages"  # the pages of the last window
    SLOT = "slot"  # one whole slot, all or nothing
    NOTHING = "nothing"  # explicitly empty


@dataclass(frozen=True, slots=True, kw_only=True)
class StateType:
    name: str
    version: int
    selection: Selection
    aliases: tuple[str, ...] = ()
    may_differ: frozenset[str] = frozenset()  # fingerprint fields two sides need not share
    deadline_s: float | None = None  # wins over the stage's default, loses to the user's setting


def _entry(name: str, selection: Selection) -> StateType:
    aliases = tuple(alias for alias, target in STATE_TYPE_ALIASES.items() if target == name)
    return StateType(name=name, version=1, selection=selection, aliases=aliases)


REGISTRY: Final[dict[str, StateType]] = {
    entry.name: entry
    for entry in (
        _entry("kv", Selection.PAGES),
        _entry("mamba", Selection.SLOT),
        _entry("none", Selection.NOTHING),
        _entry("nsa", Selection.PAGES),
        _entry("swa", Selection.WINDOW_PAGES),
    )
}


def lookup(name: str) -> StateType:
    """The entry for a name or an alias."""
    for entry in REGISTRY.values():
        if name == entry.name or name in entry.aliases:
            return entry
    known = ", ".join(
        entry.name + "".join(f" (alias {alias})" for alias in entry.aliases)
        for entry in sorted(REGISTRY.values(), key=lambda entry: entry.name)
    )
    raise UnknownStateTypeError(
        f"state type {name!r} is not known; known: {known}. "
        "Use one of these, or run an agent whose registry has it"
    )
