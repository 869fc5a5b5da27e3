"""Images that pods get where the spec names none."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    agent: str
    engine: str  # the reference engine
    router: str
