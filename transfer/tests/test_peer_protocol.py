"""Bytes from anybody: parsed strictly, or refused; frames cannot be forged, moved or repeated."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from disagg_transfer.codec import LENGTH
from disagg_transfer.contract import Cause, Role, Stage
from disagg_transfer.engine_messages import ANSWERS, CALLS, Begin, Stream
from disagg_transfer.errors import AuthenticationError, WireError
from disagg_transfer.protocol import (
    HANDSHAKE,
    PROTOCOL_VERSION,
    SESSION,
    ComponentLayout,
    Confirmed,
    EngineGone,
    Failed,
    Fingerprint,
    Hello,
    Identity,
    Landed,
    Layout,
    Offer,
    Ping,
    Pulled,
    RankPair,
    Release,
    Seal,
    Transcript,
    Want,
    Welcome,
    check_identity,
    check_proof,
)

ROOM = {"room": 2**63 - 1, "request": bytes(range(16))}
COMPONENT = ComponentLayout(
    name="kv", state_type="kv", type_version=1, item_bytes=1, layers=1, dtype="f", page_size=16
)
MESSAGES = [
    Layout(
        rank=3,
        epoch=1,
        fingerprint=Fingerprint(model="m", page_size=16, ranks=4, components=(COMPONENT,)),
        fabric_name="a/b/c",
        fabric_metadata=b"\x00\x01",
        arena_base=2**63 - 1,
        arena_bytes=4096,
    ),
    EngineGone(rank=3, epoch=1),
    Want(**ROOM, epoch=1, have={"kv": 3}),
    Offer(
        **ROOM,
        epoch=1,
        index=0,
        last=True,
        component="kv",
        chunk=0,
        first=7,
        items=1,
        final=True,
        offset=0,
        nbytes=1,
        digest=bytes(16),
        aux=b"aux",
    ),
    Pulled(**ROOM, index=0),
    Landed(**ROOM, confirm=True),
    Confirmed(**ROOM),
    Release(**ROOM),
    Failed(
        **ROOM,
        cause=Cause.TIMEOUT,
        stage=Stage.WIRE,
        state_type=None,
        component="kv",
        detail="late",
    ),
    Ping(),
]
US = Identity(
    namespace="n",
    deployment="d",
    revision="r",
    role=Role.PREFILL,
    pod="p",
    incarnation="1",
    group="0",
    node=0,
    ranks=4,
)
THEM = replace(US, role=Role.DECODE, pod="q")


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_message_survives_the_wire(message):
    assert SESSION.decode(SESSION.encode(message)) == message


@pytest.mark.parametrize("codec", [HANDSHAKE, SESSION, CALLS, ANSWERS])
@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_not_crashed_on(codec, data):
    with contextlib.suppress(WireError):
        codec.decode(data)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(
    message=st.sampled_from(MESSAGES),
    data=st.data(),
)
def test_a_message_with_one_field_changed_is_a_message_or_refused(message, data):
    fields = msgspec.msgpack.decode(SESSION.encode(message))
    if data.draw(st.booleans()):
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(ANYTHING)
    else:
        fields = {"type": fields["type"], **data.draw(st.dictionaries(st.text(), ANYTHING))}
    try:
        decoded = SESSION.decode(msgspec.msgpack.encode(fields))
    except WireError:
        return
    assert type(decoded).__name__ == fields["type"]
    assert SESSION.decode(SESSION.encode(decoded)) == decoded


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"room": -1}, r"Want: Expected `int` >= 0 - at `\$\.room`"),
        ({"room": 2**63}, r"Want: Expected `int` <= 9223372036854775807 - at `\$\.room`"),
        ({"room": True}, r"Want: Expected `int`, got `bool` - at `\$\.room`"),
        ({"room": 1.0}, r"Want: Expected `int`, got `float` - at `\$\.room`"),
        ({"room": "1"}, r"Want: Expected `int`, got `str` - at `\$\.room`"),
        ({"request": b"short"}, r"Want: Expected `bytes` of length >= 16 - at `\$\.request`"),
        ({"request": "x" * 16}, r"Want: Expected `bytes`, got `str` - at `\$\.request`"),
        ({"have": {"kv": -1}}, r"Want: Expected `int` >= 0 - at `\$\.have\[\.\.\.\]`"),
        ({"extra": 1}, "Want: Object contains unknown field `extra`"),
    ],
)
def test_a_bad_field_is_named(change, told):
    fields = msgspec.msgpack.decode(SESSION.encode(Want(**ROOM, epoch=1, have={})))
    with pytest.raises(WireError, match=told):
        SESSION.decode(msgspec.msgpack.encode({**fields, **change}))


def test_a_field_that_is_left_out_is_named():
    fields = msgspec.msgpack.decode(SESSION.encode(Want(**ROOM, epoch=1, have={})))
    del fields["epoch"]
    with pytest.raises(WireError, match="Want: Object missing required field `epoch`"):
        SESSION.decode(msgspec.msgpack.encode(fields))


def test_an_unknown_message_is_named_with_the_known():
    with pytest.raises(WireError, match=r"'Shout' is not known; known: Abort, AskWanted"):
        CALLS.decode(msgspec.msgpack.encode({"type": "Shout"}))


def test_an_engine_s_bad_argument_is_named():
    for bad in (
        Begin(call=1, room=2**63, sizes=()),
        Stream(call=1, room=1, peer="x", expect={"kv": -1}, have={}),
    ):
        with pytest.raises(WireError, match=type(bad).__name__):
            CALLS.decode(CALLS.encode(bad))
        with pytest.raises(WireError, match=type(bad).__name__):
            CALLS.encode_checked(bad)


def body(frame):
    return frame[LENGTH.size :]


def test_sealed_frames_open_in_order_only():
    sender = Seal(b"k" * 32)
    pairs = [RankPair(prefill=65535 - i, decode=i) for i in range(3)]
    wants = [Want(room=i, request=bytes(16), epoch=1, have={}) for i in range(3)]
    frames = [body(sender.close(want, pair)) for want, pair in zip(wants, pairs, strict=True)]
    opened = Seal(b"k" * 32)
    assert [opened.open(frame) for frame in frames] == list(zip(pairs, wants, strict=True))
    for order in ((0, 0), (1,), (0, 2)):
        opened = Seal(b"k" * 32)
        for index in order[:-1]:
            opened.open(frames[index])
        with pytest.raises(WireError, match="forged, repeated or out of sequence"):
            opened.open(frames[order[-1]])
    with pytest.raises(WireError, match="forged"):
        Seal(b"x" * 32).open(frames[0])


@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_one_changed_bit_breaks_the_seal(message, data):
    frame = bytearray(body(Seal(b"k" * 32).close(message)))
    place = data.draw(st.integers(0, len(frame) * 8 - 1))
    frame[place // 8] ^= 1 << place % 8
    with pytest.raises(WireError):
        Seal(b"k" * 32).open(bytes(frame))


def script(**changes):
    hello = Hello(protocol=PROTOCOL_VERSION, identity=THEM, nonce=bytes(32), keys=(bytes(8),))
    welcome = Welcome(protocol=PROTOCOL_VERSION, identity=US, nonce=bytes([1]) * 32, proof=b"")
    parts = {"hello": hello, "welcome": welcome}
    for path, value in changes.items():
        which, field = path.split("_", 1)
        parts[which] = replace(parts[which], **{field: value})
    return Transcript(**parts)


@pytest.mark.parametrize(
    "change",
    [
        {"hello_nonce": bytes([9]) * 32},
        {"welcome_nonce": bytes([9]) * 32},
        {"hello_identity": replace(THEM, pod="z")},
        {"welcome_identity": replace(US, incarnation="2")},
        {"hello_protocol": PROTOCOL_VERSION + 1},
        {"hello_keys": (b"another.",)},
    ],
)
def test_a_proof_is_of_every_word_of_the_handshake(change):
    key = b"secret"
    proof = script().derive(key, b"dialer")
    check_proof(script(), key=key, purpose=b"dialer", proof=proof)
    with pytest.raises(AuthenticationError):
        check_proof(script(**change), key=key, purpose=b"dialer", proof=proof)


def test_a_proof_is_not_the_other_side_s_nor_of_another_key():
    proof = script().derive(b"secret", b"listener")
    for key, purpose in ((b"secret", b"dialer"), (b"other", b"listener")):
        with pytest.raises(AuthenticationError, match="does not hold this deployment's key"):
            check_proof(script(), key=key, purpose=purpose, proof=proof)


@pytest.mark.parametrize("field", ["namespace", "deployment", "revision"])
def test_a_peer_is_of_the_same_deployment_and_revision(field):
    check_identity(US, THEM, protocol=PROTOCOL_VERSION)
    with pytest.raises(AuthenticationError, match=f"{field}: peer q has 'else'"):
        check_identity(US, replace(THEM, **{field: "else"}), protocol=PROTOCOL_VERSION)


def test_a_peer_is_of_the_other_role_and_the_same_protocol():
    with pytest.raises(AuthenticationError, match="role: peer q has 'prefill'"):
        check_identity(US, replace(THEM, role=Role.PREFILL), protocol=PROTOCOL_VERSION)
    with pytest.raises(
        AuthenticationError, match=f"protocol: peer q speaks {PROTOCOL_VERSION + 1}"
    ):
        check_identity(US, THEM, protocol=PROTOCOL_VERSION + 1)
