"""The keys that the two sides of one session have shown to hold. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from disagg_transfer.contract import key_id
from disagg_transfer.protocol import Holds, Transcript, check_proof

_MAX_CLAIMS: Final = 4  # of keys that this side has not read yet; two is all a file holds

Named = Mapping[bytes, bytes]  # key by its id


class Bond:
    """A session begins with one proved key; each side shows others as it comes to hold them."""

    def __init__(self, script: Transcript, *, key: bytes, ours: bytes, theirs: bytes) -> None:
        self._script, self._ours, self._theirs = script, ours, theirs
        self._told = {key_id(key)}
        self._proved = {key_id(key)}
        self._claims: dict[bytes, bytes] = {}

    def news(self, keys: Named) -> Iterable[Holds]:
        """What the peer has not been told yet."""
        for name in keys.keys() - self._told:
            self._told.add(name)
            proof = self._script.derive(keys[name], b"holds, " + self._ours)
            yield Holds(key=name, proof=proof)

    def claim(self, message: Holds) -> None:
        """Kept until this side has read that key too."""
        self._claims[message.key] = message.proof
        while len(self._claims) > _MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]

    def stands(self, keys: Named) -> bool:
        """Whether both sides hold one of these; raises AuthenticationError on a false proof."""
        for name in keys.keys() & self._claims.keys():
            proof = self._claims.pop(name)
            purpose = b"holds, " + self._theirs
            check_proof(self._script, key=keys[name], purpose=purpose, proof=proof)
            self._proved.add(name)
        return not self._proved.isdisjoint(keys)
