"""Faults on purpose, for tests and drills; off unless the switch is on.

`withhold TYPE` keeps payloads of a state type from being announced, as a connector that forgets
one does; `duplicate TYPE` announces each of them twice, as one that tries again does; `zero TYPE`
wipes them after their digest is taken, as a connector that truncates does.
"""

from disagg_transfer.contract import ENV_FAULT_SWITCH, FaultSwitch
from disagg_transfer.errors import SettingsError
from disagg_transfer.registry import lookup

KINDS = ("withhold", "duplicate", "zero")


class Faults:
    def __init__(self, switch: FaultSwitch) -> None:
        self._switch = switch
        self._set: set[tuple[str, str]] = set()

    def set(self, kind: str, state_type: str) -> None:
        self._check_switch()
        if kind not in KINDS:
            raise SettingsError(f"fault {kind!r} is not one of {', '.join(KINDS)}, lift")
        self._set.add((kind, lookup(state_type).name))

    def lift(self) -> None:
        self._check_switch()
        self._set.clear()

    def withholds(self, state_type: str) -> bool:
        return ("withhold", state_type) in self._set

    def copies(self, state_type: str) -> int:
        """How often an offer of this type is said."""
        if self.withholds(state_type):
            return 0
        return 2 if ("duplicate", state_type) in self._set else 1

    def zeroes(self, state_type: str) -> bool:
        return ("zero", state_type) in self._set

    @property
    def described(self) -> tuple[str, ...]:
        return tuple(sorted(f"{kind}:{state_type}" for kind, state_type in self._set))

    def _check_switch(self) -> None:
        if self._switch is not FaultSwitch.ENABLED:
            raise SettingsError(
                f"faults are off: {ENV_FAULT_SWITCH} is {self._switch.value!r}; "
                f"set it to {FaultSwitch.ENABLED.value!r} on this agent to allow them"
            )
