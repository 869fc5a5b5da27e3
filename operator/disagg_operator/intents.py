"""The single steps of a plan: what is written, and why."""

from dataclasses import dataclass, field

from disagg_operator.kinds import Json, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    kind: Kind
    body: Json = field(repr=False)
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatePod:
    body: Json = field(repr=False)
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateScaler:
    """Made once; what is in its spec is somebody else's from then on."""

    body: Json = field(repr=False)
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """What we say in the status of an object that is not ours alone: a scaler's or a pod's."""

    kind: Kind
    body: Json = field(repr=False)
    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteKeys:
    """The Secret of a revision; it belongs to the revision's Service, and goes with it."""

    name: str
    revision: str
    service: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsureGang:
    """The PodGroup of a group of pods; it goes with the Service of its role and revision."""

    name: str
    body: Json = field(repr=False)
    service: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    kind: Kind
    name: str
    uid: str
    reason: str
    ended: bool = False  # a pod that had come to its end by itself
    force: bool = False  # its node is dead: do not wait for the kubelet


Intent = Apply | CreatePod | CreateScaler | Tell | WriteKeys | EnsureGang | Delete
