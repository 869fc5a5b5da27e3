"""Which chunks carry a digest, decided alike on both sides from what both know. Pure."""

from dataclasses import dataclass
from typing import Final

import xxhash

from disagg_transfer.contract import Integrity

_WHOLE: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    mode: Integrity
    rate: float  # share of the chunks, where `mode` is sampled

    def checks(self, *, room: int, component: str, chunk: int) -> bool:
        """The same answer on every machine: a chunk's fate hangs on its name alone."""
        if self.mode is not Integrity.SAMPLED:
            return self.mode is Integrity.ALWAYS
        name = f"{room}/{chunk}/{component}".encode()
        return xxhash.xxh3_64_intdigest(name) < self.rate * _WHOLE
