"""Which pairs sample each other, how much, when again, and what that says about readiness."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_transfer.canary import (
    MAX_SAMPLE_BYTES,
    PreflightSettings,
    next_canary,
    next_retry,
    pattern,
    sample_sizes,
    spanning_pairs,
)
from disagg_transfer.contract import (
    Cause,
    PreflightMode,
    PreflightReport,
    PreflightState,
    Transport,
    TransportPolicy,
)
from disagg_transfer.verdict import is_good, transport_of, verdict

NAMES = st.sets(st.text("abcdef-0123", min_size=1, max_size=6), max_size=30)


@given(NAMES, NAMES, st.integers(1, 80), st.randoms())
def test_every_pod_is_in_a_pair_and_all_agree_on_the_pairs(prefills, decodes, limit, shuffler):
    pairs = spanning_pairs(prefills, decodes, limit=limit)
    every = {(p, d) for p in prefills for d in decodes}
    assert pairs <= every
    if every:
        assert ({p for p, _ in pairs}, {d for _, d in pairs}) == (prefills, decodes)
    assert len(pairs) == min(len(every), max(limit, len(prefills), len(decodes)))
    mixed = list(prefills) + list(prefills)
    shuffler.shuffle(mixed)
    assert spanning_pairs(mixed, sorted(decodes, reverse=True), limit=limit) == pairs


def test_a_hundred_prefill_pods_take_a_hundred_pairs():
    pods = [f"p{number}" for number in range(100)]
    assert len(spanning_pairs(pods, ["d0", "d1", "d2"])) == 100
    assert len(spanning_pairs(pods[:9], pods[:9])) == 64
    assert len(spanning_pairs(pods[:8], pods[:8])) == 64


@given(
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 1 << 28), max_size=9),
    st.integers(1, 1 << 28).map(lambda pages: pages * 4096),
)
def test_a_sample_is_of_whole_items_and_small(item_bytes, arena_bytes):
    sizes = sample_sizes(item_bytes, arena_bytes=arena_bytes)
    assert sizes
    for name, nbytes in sizes.items():
        assert 0 < nbytes <= min(MAX_SAMPLE_BYTES, arena_bytes // 16)
        item = item_bytes.get(name) or 1
        assert nbytes % item == 0 or nbytes < item
    assert set(sizes) == {name for name, nbytes in item_bytes.items() if nbytes} or not any(
        item_bytes.values()
    )


def test_a_pattern_is_the_seed_s_own_and_a_shorter_one_its_beginning():
    assert pattern(b"a" * 16, 100)[:10] == pattern(b"a" * 16, 10) != pattern(b"b" * 16, 10)


@given(st.floats(0, 1e9), st.integers(1, 50), st.integers(0, 2**32))
def test_the_next_sample_is_spread_and_failures_back_off(now, failures, seed):
    source = random.Random(seed)
    assert 23.9 <= next_canary(now, every_s=30, random=source) - now <= 36.1
    pause = next_retry(now, failures=failures, random=source) - now
    assert (0.7 if failures == 1 else 1.5) <= pause <= 36.1


def row(pod="p", state="passed", transport="tcp", **fields):
    return PreflightReport(
        pod=pod,
        state=PreflightState(state),
        gbps=None,
        latency_ms=None,
        transport=Transport(transport),
        transport_reason=fields.get("reason", ""),
        detail=fields.get("detail", "late"),
        cause=Cause.TIMEOUT if state == "failed" else None,
        at=None,
        passed_at=None,
    )


REQUIRED = PreflightSettings(mode=PreflightMode.REQUIRED)
OBSERVED = PreflightSettings()
RDMA = PreflightSettings(policy=TransportPolicy.REQUIRE_RDMA)
GOOD, BAD, NEW = row("a"), row("b", "failed"), row("c", "pending", "unknown")


@pytest.mark.parametrize(
    ("rows", "settings", "cleared", "reason"),
    [
        ((GOOD, BAD, NEW), OBSERVED, False, None),
        ((), REQUIRED, False, None),
        ((GOOD,), REQUIRED, False, None),
        ((GOOD, NEW), REQUIRED, False, "PreflightPending"),
        ((GOOD, BAD, NEW), REQUIRED, False, "PreflightFailed"),
        ((GOOD, BAD, NEW), REQUIRED, True, None),
        ((BAD, NEW), REQUIRED, True, "PreflightFailed"),
        ((row("r", transport="rdma"),), RDMA, False, None),
        ((row("r", transport="rdma"), NEW), RDMA, False, "PreflightPending"),
        ((row("r", transport="rdma"), NEW), RDMA, True, None),
        ((row("r", transport="rdma"), GOOD), RDMA, True, "TransportRefused"),
        ((row("u", transport="unknown"),), RDMA, False, "TransportRefused"),
    ],
)
def test_what_preflight_found_decides_readiness(rows, settings, cleared, reason):
    found = verdict(rows, settings, cleared=cleared)
    assert (found[0] if found else None) == reason
    assert reason is not None or (cleared or all(is_good(one, settings) for one in rows))


def test_the_verdict_names_the_pod_and_why():
    assert verdict((BAD,), REQUIRED, cleared=False)[1] == "prefill pod b: Timeout: late"
    tcp = row("x", reason="no RDMA device")
    assert verdict((tcp,), RDMA, cleared=False)[1] == (
        "reads from prefill pod x go over tcp: no RDMA device"
    )


def test_an_agent_s_transport_is_what_all_its_peers_have():
    prefer, quiet = TransportPolicy.PREFER_RDMA, TransportPolicy.ANY
    tcp, rdma = row("x", reason="no device"), row("y", transport="rdma")
    assert transport_of((), prefer) == transport_of((NEW,), prefer) == ("unknown", "")
    assert transport_of((tcp, NEW), prefer) == ("tcp", "prefill pod x: no device")
    assert transport_of((tcp, rdma), quiet) == ("mixed", "")
    assert transport_of((rdma,), prefer) == ("rdma", "")
