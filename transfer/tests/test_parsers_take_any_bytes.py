"""Whatever bytes come, a parser returns or refuses: in bounded time, memory and words."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disagg_fuzz.hunt import watch
from disagg_fuzz.mutate import mutate
from disagg_fuzz.targets import TARGETS
from disagg_transfer.contract import ReportError, parse_report
from disagg_transfer.engine_messages import CALLS
from disagg_transfer.errors import WireError
from disagg_transfer.protocol import HANDSHAKE, SESSION

CORPUS = Path(__file__).parent / "corpus"
BY_NAME = {target.name: target for target in TARGETS}
KEPT = sorted(CORPUS.glob("*/*.bin"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_once_broke_a_parser_does_not_again(path):
    assert watch(BY_NAME[path.parent.name], path.read_bytes()) is None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_a_parser_is_for_it_takes(target):
    for seed in target.seeds:
        target.parse(seed)
        assert watch(target, seed) is None


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(rng=st.randoms(use_true_random=False), data=st.data())
def test_valid_bytes_made_wrong_are_taken_or_refused(target, rng, data):
    found = watch(target, mutate(rng, data.draw(st.sampled_from(target.seeds))))
    assert found is None, f"{found.what}: {found.data[:200]!r}"


def test_lists_that_are_announced_and_do_not_follow_are_not_built():
    bomb = (CORPUS / "handshake" / "nested-lists.bin").read_bytes()
    with pytest.raises(WireError, match="no message: Expected `object`, got `array`"):
        HANDSHAKE.decode(bomb)
    wide = b"\xdc\xff\xff" * 900  # shorter than the longest list that an engine's call has
    assert watch(BY_NAME["calls"], wide) is None


@pytest.mark.parametrize("kind", ["list", "map", "bytes", "text"])
@pytest.mark.parametrize(
    ("codec", "message", "field"),
    [
        (CALLS, "GiveBack", "extents"),
        (CALLS, "Stream", "expect"),
        (CALLS, "OfferPayload", "aux"),
        (CALLS, "CloseStream", "detail"),
        (SESSION, "DecodePods", "pods"),
    ],
)
def test_what_a_field_announces_and_does_not_bring_is_not_made_room_for(
    codec, message, field, kind
):
    heads = {"list": b"\xdd", "map": b"\xdf", "bytes": b"\xc6", "text": b"\xdb"}
    words = [msgspec.msgpack.encode(word) for word in ("type", message, field)]
    bomb = b"".join((b"\x82", *words, heads[kind], b"\xff" * 4))
    with pytest.raises(WireError):
        codec.decode(bomb)
    assert watch(BY_NAME["calls" if codec is CALLS else "session"], bomb) is None


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ("nan", "NaN is not a number"),
        ("infinity", r"report\.time: inf is not a float"),
        ("time-beyond-float", r"report\.time: inf is not a float"),
        ("half-a-surrogate", r"report\.pod: half a surrogate pair"),
        ("nested", "not JSON: maximum recursion depth"),
        ("list-as-role", r"report\.role: list is not one of prefill"),
    ],
)
def test_a_report_with_what_no_status_can_hold_is_refused_by_field(kept, told):
    with pytest.raises(ReportError, match=told):
        parse_report((CORPUS / "report" / f"{kept}.bin").read_bytes())
