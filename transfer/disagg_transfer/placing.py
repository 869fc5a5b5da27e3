"""The rules of one component's chunks, for whoever offers them and whoever takes them in. Pure."""

from dataclasses import dataclass
from typing import Protocol

from disagg_transfer.contract import Cause, Stage
from disagg_transfer.errors import TransferFailed


class Shaped(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def state_type(self) -> str: ...

    @property
    def item_bytes(self) -> int: ...


@dataclass(slots=True, kw_only=True)
class Course:
    """How far one component is offered."""

    next_item: int = 0
    chunks: int = 0
    final: bool = False

    def check(self, component: str, *, first: int, items: int, final: bool, have: int) -> None:
        """In order and without a gap; the first chunk may begin within what decode has."""
        if self.final:
            raise _misplaced(f"component {component} is offered again after its final chunk")
        if first != self.next_item and (self.chunks or first > have):
            raise _misplaced(
                f"component {component}: a chunk from item {first}, "
                f"where item {self.next_item} is next"
            )
        if not items and not final:
            raise _misplaced(f"component {component}: an empty chunk must be the final one")

    def extend(self, *, first: int, items: int, final: bool) -> None:
        self.next_item = first + items
        self.chunks += 1
        self.final = final


def check_size(part: Shaped, *, items: int, nbytes: int) -> None:
    """ShortPayload or LongPayload where an extent is not as long as its items."""
    wanted = items * part.item_bytes
    if nbytes == wanted:
        return
    raise TransferFailed(
        Cause.SHORT_PAYLOAD if nbytes < wanted else Cause.LONG_PAYLOAD,
        stage=Stage.NOTIFY,
        state_type=part.state_type,
        component=part.name,
        detail=f"{items} items of {part.item_bytes} bytes are {wanted} bytes, "
        f"the extent has {nbytes}",
    )


def _misplaced(detail: str) -> TransferFailed:
    return TransferFailed(Cause.PROTOCOL_ERROR, stage=Stage.QUEUE, detail=detail)
