"""JSON that is kept for every object and looked at once a pass."""

import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Packed:
    """As text it is a fifth of the size, and nothing that Python's garbage collector walks over:
    with 1,000 resources as dicts a full collection stopped everything for up to two seconds.
    Equal values are equal.
    """

    text: bytes

    @classmethod
    def of(cls, value: Any) -> Self:
        return cls(json.dumps(value, separators=(",", ":"), sort_keys=True).encode())

    @property
    def value(self) -> Any:
        """A new copy, for whoever asks."""
        return json.loads(self.text)
