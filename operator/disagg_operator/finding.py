"""One answer about one aspect of a resource; conditions are made of these."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Truth = Literal["True", "False", "Unknown"]


class Weight(IntEnum):
    """How near to the root cause a reason is: of several, the smallest is told."""

    LAYOUT = 1
    IMAGE = 2
    MEMORY = 3
    CONFIG = 4
    CRASH = 5
    PLACEMENT = 6
    AGENT = 7
    STARTING = 8
    CREATING = 9
    MISSING = 10
    CONSEQUENCE = 11
    NONE = 12  # told, and no reason not to be Ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    truth: Truth
    reason: str
    message: str
    weight: Weight = Weight.NONE
