"""What two agents say to each other: the handshake, sealed frames, and the messages.

    dialer   -> Hello    identity, nonce, and the names of the keys it holds
    listener -> Welcome  identity, nonce, and a proof over both
    dialer   -> Proof    its own proof over both

Both proofs are HMACs with the first of those keys that the listener holds too, over the exact bytes of Hello and of Welcome
without its proof, so neither side's words, nonces or role can be replayed or reflected. Every
later frame is `length | mac | payload`, the mac keyed per direction and session and taken over a
sequence number, so a frame cannot be forged, repeated, dropped or moved. Nothing is secret.

A payload is `prefill rank | decode rank | message`: one connection of two pods carries the requests
of every pair of their engine ranks. Layout and EngineGone name their one rank themselves.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Annotated, Any, Final

from disagg_transfer.canary import MAX_SAMPLE_BYTES
from disagg_transfer.codec import (
    LENGTH,
    Aux,
    Codec,
    Count,
    Message,
    Name,
    Record,
    Room,
    Text,
    sized,
    within,
)
from disagg_transfer.contract import Cause, Role, Stage
from disagg_transfer.errors import AuthenticationError, WireError

PROTOCOL_VERSION: Final = 3
MAX_HANDSHAKE_BYTES: Final = 4096  # a stranger can make us hold no more than this
MAX_FRAME_BYTES: Final = 4 << 20
MAC_BYTES: Final = 16
MAX_RANKS: Final = 64  # of one pod
MAX_NODES: Final = 1024  # of one group

Nonce = Annotated[bytes, sized(32, 32)]
KeyId = Annotated[bytes, sized(8, 8)]
RequestId = Annotated[bytes, sized(16, 16)]
Index = Annotated[int, within(0, (1 << 20) - 1)]  # offers of one request
Rank = Annotated[int, within(0, MAX_RANKS * MAX_NODES - 1)]
_RANKS: Final = struct.Struct("!HH")
HEAD_BYTES: Final = MAC_BYTES + _RANKS.size  # before every message


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RankPair:
    """The two engine ranks, by their global tensor-parallel numbers, that a message is between."""

    prefill: int
    decode: int


WHOLE_POD: Final = RankPair(prefill=0, decode=0)  # of messages that are of no one pair


class Identity(Record, frozen=True, kw_only=True):
    namespace: Name
    deployment: Name
    revision: Name
    role: Role
    pod: Name
    incarnation: Name
    group: Name
    node: Annotated[int, within(0, MAX_NODES - 1)]  # of the pod in its group
    ranks: Annotated[int, within(1, MAX_RANKS)]  # engine ranks of this pod, as of every pod of it

    @property
    def held(self) -> range:
        """The global ranks that this pod's engines have."""
        return range(self.node * self.ranks, (self.node + 1) * self.ranks)


class Hello(Message, frozen=True, kw_only=True):
    protocol: Count
    identity: Identity
    nonce: Nonce
    keys: Annotated[tuple[KeyId, ...], sized(1, 2)]


class Welcome(Message, frozen=True, kw_only=True):
    protocol: Count
    identity: Identity
    nonce: Nonce
    proof: Annotated[bytes, sized(0, 32)]


class Proof(Message, frozen=True, kw_only=True):
    proof: Annotated[bytes, sized(32, 32)]


class ComponentLayout(Record, frozen=True, kw_only=True):
    name: Name
    state_type: Name
    type_version: Count
    item_bytes: Count
    layers: Count
    dtype: Name
    page_size: Count


class Fingerprint(Record, frozen=True, kw_only=True):
    model: Name
    page_size: Count
    ranks: Annotated[int, within(1, MAX_RANKS * MAX_NODES)]  # tensor parallel, of the whole group
    components: Annotated[tuple[ComponentLayout, ...], sized(0, 256)]


class Layout(Message, frozen=True, kw_only=True):
    """Said when an engine registers. Offers are offsets into [arena_base, +arena_bytes)."""

    rank: Rank
    epoch: Count
    fingerprint: Fingerprint
    fabric_name: Name
    fabric_metadata: Annotated[bytes, sized(0, 1 << 20)]
    arena_base: Annotated[int, within(0, 2**63 - 1)]
    arena_bytes: Count


class EngineGone(Message, frozen=True, kw_only=True):
    rank: Rank
    epoch: Count


class Want(Message, frozen=True, kw_only=True):
    """Decode claims a room of the engine registration `epoch`; `request` names this claim.

    `have` says how many leading items of a component it holds already; none where it is not named.
    """

    room: Room
    request: RequestId
    epoch: Count
    have: Annotated[dict[Name, Count], sized(0, 256)]


class Offer(Message, frozen=True, kw_only=True):
    """One chunk: items [first, first + items) of a component, laid out [tensor][item][bytes].

    `index` counts the request's offers, so `last` tells how many there are; `chunk` counts the
    component's, of which `final` is the last.
    """

    room: Room
    request: RequestId
    epoch: Count
    index: Index
    last: bool
    component: Name
    chunk: Index
    first: Count
    items: Count
    final: bool
    offset: Count
    nbytes: Count
    digest: Annotated[bytes, sized(0, 16)]
    aux: Aux


class Pulled(Message, frozen=True, kw_only=True):
    """The chunk of this offer is in decode's arena and whole; others are not yet."""

    room: Room
    request: RequestId
    index: Index


class Landed(Message, frozen=True, kw_only=True):
    """Every byte is in decode's arena; with `confirm` it asks whether the lease held all along.

    Where every chunk's digest was checked it need not ask: what landed is what was offered.
    """

    room: Room
    request: RequestId
    confirm: bool


class Confirmed(Message, frozen=True, kw_only=True):
    """The lease held: what landed is what was offered."""

    room: Room
    request: RequestId


class Release(Message, frozen=True, kw_only=True):
    """Decode's engine has scattered it."""

    room: Room
    request: RequestId


class Failed(Message, frozen=True, kw_only=True):
    room: Room
    request: RequestId | None  # None: the sender gives up a room that it never claimed
    cause: Cause
    stage: Stage
    state_type: Name | None
    component: Name | None
    detail: Text


class Holds(Message, frozen=True, kw_only=True):
    """The sender holds this key too: what keeps a session when the key it began with goes."""

    key: KeyId
    proof: Annotated[bytes, sized(32, 32)]


class SampleWanted(Message, frozen=True, kw_only=True):
    """Decode asks for known bytes to pull: `pattern(seed, nbytes)`, outside of any request."""

    number: Count
    seed: RequestId
    nbytes: Annotated[int, within(1, MAX_SAMPLE_BYTES)]


class SampleReady(Message, frozen=True, kw_only=True):
    number: Count
    offset: Count


class SampleRefused(Message, frozen=True, kw_only=True):
    """The arena has better things to do; ask again later."""

    number: Count
    detail: Text


class SampleDone(Message, frozen=True, kw_only=True):
    """Decode reads it no more."""

    number: Count


class DecodePods(Message, frozen=True, kw_only=True):
    """Prefill tells every decode pod which others there are, so that all choose the same pairs."""

    pods: Annotated[tuple[Name, ...], sized(0, 4096)]


class Ping(Message, frozen=True, kw_only=True):
    pass


HANDSHAKE: Final = Codec((Hello, Welcome, Proof))
SESSION: Final = Codec(
    (
        Layout,
        EngineGone,
        Want,
        Offer,
        Pulled,
        Landed,
        Confirmed,
        Release,
        Failed,
        SampleWanted,
        SampleReady,
        SampleRefused,
        SampleDone,
        DecodePods,
        Holds,
        Ping,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """The bytes both proofs are taken over."""

    hello: Hello
    welcome: Welcome  # its own proof is left out

    def digest(self) -> bytes:
        bare = Welcome(
            protocol=self.welcome.protocol,
            identity=self.welcome.identity,
            nonce=self.welcome.nonce,
            proof=b"",
        )
        hello, welcome = HANDSHAKE.encode(self.hello), HANDSHAKE.encode(bare)
        return hashlib.sha256(LENGTH.pack(len(hello)) + hello + welcome).digest()

    def derive(self, key: bytes, purpose: bytes) -> bytes:
        return hmac.digest(key, purpose + b"\0" + self.digest(), "sha256")


def check_proof(transcript: Transcript, *, key: bytes, purpose: bytes, proof: bytes) -> None:
    proved_key(transcript, keys=(key,), purpose=purpose, proof=proof)


def proved_key(
    transcript: Transcript, *, keys: tuple[bytes, ...], purpose: bytes, proof: bytes
) -> bytes:
    """The one of `keys` that the proof was made with; AuthenticationError if none."""
    for key in keys:
        if hmac.compare_digest(transcript.derive(key, purpose), proof):
            return key
    raise AuthenticationError(
        "the other side does not hold this deployment's key; "
        "check that both pods mount the key Secret of the same revision"
    )


def check_identity(ours: Identity, theirs: Identity, *, protocol: int) -> None:
    """A peer is of the same deployment and revision, and of the other role."""
    if protocol != PROTOCOL_VERSION:
        raise AuthenticationError(
            f"protocol: peer {theirs.pod} speaks {protocol}, this agent {PROTOCOL_VERSION}; "
            "run agent images of the same release"
        )
    for field in ("namespace", "deployment", "revision"):
        mine, other = getattr(ours, field), getattr(theirs, field)
        if mine != other:
            raise AuthenticationError(
                f"{field}: peer {theirs.pod} has {other!r}, this agent {mine!r}; "
                "only agents of one deployment and revision are peers"
            )
    if ours.role == theirs.role:
        raise AuthenticationError(
            f"role: peer {theirs.pod} has {theirs.role.value!r} as this agent has; "
            "a prefill agent talks to decode agents only"
        )


class Seal:
    """One direction of a session: each frame's mac covers its place in the sequence."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sequence = 0

    def _mac(self, payload: bytes | memoryview) -> bytes:
        mac = hashlib.blake2b(
            self._sequence.to_bytes(8, "big"), key=self._key, digest_size=MAC_BYTES
        )
        mac.update(payload)
        self._sequence += 1
        return mac.digest()

    def close(self, message: Any, pair: RankPair = WHOLE_POD) -> bytes:
        """The whole frame of a message, length included."""
        payload = _RANKS.pack(pair.prefill, pair.decode) + SESSION.encode(message)
        return LENGTH.pack(MAC_BYTES + len(payload)) + self._mac(payload) + payload

    def open(self, body: bytes) -> tuple[RankPair, Any]:
        """What a frame's body says; the sequence moves on even if it is refused."""
        mac, payload = body[:MAC_BYTES], memoryview(body)[MAC_BYTES:]
        if not hmac.compare_digest(self._mac(payload), mac):
            raise WireError("a frame's mac is wrong: forged, repeated or out of sequence")
        if len(payload) < _RANKS.size:
            raise WireError(f"frame of {len(body)} bytes; at least {HEAD_BYTES} are its head")
        prefill, decode = _RANKS.unpack_from(payload)
        return RankPair(prefill=prefill, decode=decode), SESSION.decode(payload[_RANKS.size :])
