"""The open registry of state types: what one is called, how its items are found and resharded.

A new type is one more entry: here, or in a distribution of somebody else's, which names its
`StateType` in the entry point group `disagg.state_types` and calls it `vendor/name`. Nothing else
in the package lists the names.
"""

import functools
import importlib.metadata
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from disagg_transfer.contract import OWN_STATE_TYPE, STATE_TYPE_ALIASES
from disagg_transfer.errors import StateTypeError, UnknownStateTypeError
from disagg_transfer.selection import Request, Selection, indices

ENTRY_POINTS: Final = "disagg.state_types"
# What two sides compare of a component, so what an entry may excuse.
LAYOUT_FIELDS: Final = ("state_type", "type_version", "item_bytes", "layers", "dtype", "page_size")


class Resharding(StrEnum):
    """What becomes of a component when prefill and decode differ in tensor parallelism."""

    REPLICATED = "replicated"  # every rank holds the whole: any rank's copy is the state
    HEADS = "heads"  # split by head along one axis of every tensor
    CONV_GROUPS = "convGroups"  # one axis is several blocks, each split by head on its own
    REFUSED = "refused"  # equal tensor parallelism only


@dataclass(frozen=True, slots=True, kw_only=True)
class StateType:
    """One entry. Raises StateTypeError, naming the field, when it makes no sense."""

    name: str
    selection: Selection
    resharding: Resharding
    version: int = 1  # raise it when the same bytes mean something else
    aliases: tuple[str, ...] = ()
    rule: str = ""  # where the rules come from; a refusal quotes it
    block_tokens: int = 0  # a slot that is there only while a block of so many is unfinished
    may_differ: frozenset[str] = frozenset()  # of LAYOUT_FIELDS; item counts never may
    deadline_s: float | None = None  # wins over the default, loses to any setting of the user's

    def __post_init__(self) -> None:
        if self.version < 1 or self.block_tokens < 0:
            raise StateTypeError(
                f"state type {self.name!r}: version {self.version} must be positive and "
                f"block_tokens {self.block_tokens} not negative"
            )
        if self.block_tokens and self.selection is not Selection.SLOT:
            raise StateTypeError(f"state type {self.name!r}: block_tokens is for slots only")
        excusable = set(LAYOUT_FIELDS) - {"state_type", "type_version"}
        if self.may_differ - excusable:
            raise StateTypeError(
                f"state type {self.name!r}: may_differ {sorted(self.may_differ - excusable)}; "
                f"allowed are {', '.join(sorted(excusable))}"
            )
        deadline = self.deadline_s
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            raise StateTypeError(
                f"state type {self.name!r}: deadline_s {deadline} is not positive seconds"
            )
        if self.resharding is Resharding.REFUSED and not self.rule:
            raise StateTypeError(
                f"state type {self.name!r}: rule is empty; a refusal to reshard quotes its source"
            )

    def indices(self, request: Request) -> Sequence[int]:
        """The positions of the request's items; see disagg_transfer.selection."""
        return indices(self.selection, request, block_tokens=self.block_tokens)

    def why_not(self, *, prefill_ranks: int, decode_ranks: int) -> str | None:
        """Why no component of this type can go from so many ranks to so many; None if it can."""
        if prefill_ranks == decode_ranks or self.resharding is not Resharding.REFUSED:
            return None
        return (
            f"state type {self.name!r} cannot go from tensor parallelism {prefill_ranks} (prefill) "
            f"to {decode_ranks} (decode): {self.rule}; give both sides the same"
        )


def _entry(
    name: str,
    selection: Selection,
    resharding: Resharding,
    *,
    rule: str = "",
    block_tokens: int = 0,
) -> StateType:
    aliases = tuple(alias for alias, target in STATE_TYPE_ALIASES.items() if target == name)
    return StateType(
        name=name,
        selection=selection,
        resharding=resharding,
        aliases=aliases,
        rule=rule,
        block_tokens=block_tokens,
    )


_SGLANG: Final = "SGLang's disaggregation"
BUILT_IN: Final = (
    _entry("kv", Selection.PAGES, Resharding.HEADS),
    _entry("mamba", Selection.SLOT, Resharding.CONV_GROUPS),
    _entry("none", Selection.NOTHING, Resharding.REPLICATED),
    _entry("nsa", Selection.PAGES, Resharding.REPLICATED),
    _entry(
        "swa",
        Selection.WINDOW_PAGES,
        Resharding.REFUSED,
        rule=f"{_SGLANG} refuses it unless the model is MLA (sglang#38552, llm-d#2433)",
    ),
    # DeepSeek V4: a window kept as rows of a ring, and the state of an unfinished block of 128.
    _entry("swa_ring", Selection.RING_ROWS, Resharding.REPLICATED),
    _entry("c128_state", Selection.SLOT, Resharding.REPLICATED, block_tokens=128),
    # MiniMax-M3: index keys on the pages of kv.
    _entry(
        "minimax_index_k",
        Selection.PAGES,
        Resharding.REFUSED,
        rule=f"{_SGLANG} refuses it at unequal tensor parallelism",
    ),
    # Qwen3.8: compressed keys on the pages of the whole sequence.
    _entry(
        "qsa_compressed",
        Selection.PAGES,
        Resharding.REFUSED,
        rule=f"{_SGLANG} documents no rule for it",
    ),
    # The scales of a block-scaled cache: the pages of the kv, or of the swa, that they describe.
    _entry(
        "block_scale",
        Selection.PAGES,
        Resharding.REFUSED,
        rule=f"{_SGLANG} documents no rule for it",
    ),
    _entry(
        "block_scale_swa",
        Selection.WINDOW_PAGES,
        Resharding.REFUSED,
        rule=f"{_SGLANG} documents no rule for it",
    ),
)


@functools.cache
def entries() -> Mapping[str, StateType]:
    """Every entry by its name and by each alias; the installed ones are read once per process.

    Raises StateTypeError when one is no StateType, is misnamed, or takes a name that is taken.
    """
    found = {name: entry for entry in BUILT_IN for name in (entry.name, *entry.aliases)}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        entry = _load(point)
        for name in (entry.name, *entry.aliases):
            if name in found:
                raise StateTypeError(
                    f"state type {name!r} of {_origin(point)} is defined already, by "
                    f"{found[name].name!r}; uninstall one of the two, or rename it"
                )
            found[name] = entry
    return MappingProxyType(found)


def lookup(name: str) -> StateType:
    """The entry for a name or an alias; UnknownStateTypeError lists what there is."""
    entry = entries().get(name)
    if entry is None:
        raise UnknownStateTypeError(
            f"state type {name!r:.256} is not known; known: {_listed(entries().values())}. Use one of "
            f"these, or install one of your own into the agent's image: docs/state-types.md"
        )
    return entry


def _load(point: importlib.metadata.EntryPoint) -> StateType:
    try:
        entry = point.load()
    except (ImportError, AttributeError) as error:
        raise StateTypeError(f"{_origin(point)} cannot be loaded: {error}") from error
    if not isinstance(entry, StateType):
        raise StateTypeError(f"{_origin(point)} is a {type(entry).__name__}, not a StateType")
    for name in (entry.name, *entry.aliases):
        if not re.fullmatch(OWN_STATE_TYPE, name):
            raise StateTypeError(
                f"state type {name!r} of {_origin(point)}: a name of your own is vendor/name in "
                "lower case, such as example.com/ring"
            )
    return entry


def _origin(point: importlib.metadata.EntryPoint) -> str:
    distribution = point.dist.name if point.dist is not None else "an unnamed distribution"
    return f"entry point {point.value!r} of {distribution}"


def _listed(found: Iterable[StateType]) -> str:
    by_name = {entry.name: entry for entry in found}
    return ", ".join(
        name + "".join(f" (alias {alias})" for alias in by_name[name].aliases)
        for name in sorted(by_name)
    )
