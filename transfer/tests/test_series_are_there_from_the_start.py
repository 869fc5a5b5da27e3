"""Prometheus sees every series at 0 before anything happens; traffic and failures add none."""

import pytest

from disagg_transfer.client import TransferFailed
from disagg_transfer.local import LocalAgent

TYPES = ["kv", "mamba", "swa", "nsa", "none"]


def scraped(agent):
    """Series and values, without the times at which counters were made."""
    lines = agent.get("/metrics").decode().splitlines()
    pairs = (line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs if "_created" not in name}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What an agent shows that no engine and no peer has ever spoken to."""
    folder = tmp_path_factory.mktemp("fresh")
    with LocalAgent(folder, role="prefill", state_types=TYPES) as agent:
        return scraped(agent)


def test_no_series_appears_later(tmp_path, kit, rooms, fresh):
    settings = {"state_types": TYPES, "timeouts": {"default": 10, "stages": {"notify": 0.3}}}
    with kit.agents(tmp_path, both={**settings, "faults": True}) as pair:
        kit.until(lambda: [row.state for row in pair.decode.report().preflight] == ["passed"])
        pair.round_trip(next(rooms))
        pair.decode.fault("withhold", "mamba")
        room = next(rooms)
        pair.offer(room, pair.payloads())
        with pytest.raises(TransferFailed, match="Timeout"):
            pair.pull(room)
        for agent in (pair.prefill, pair.decode):
            assert scraped(agent).keys() == fresh.keys()
        now = scraped(pair.decode)
        assert now['disagg_agent_transfers_total{state_type="kv"}'] >= 1
        assert now['disagg_agent_preflight_pairs{state="passed"}'] == 1
        assert now['disagg_agent_transport_info{transport="cma"}'] == 1
        assert 0 < now["disagg_agent_heartbeat_age_worst_seconds"] < 3


def test_a_fresh_agent_has_them_all_at_zero(fresh):
    assert fresh['disagg_agent_arena_bytes{state="total"}'] == 64 << 20
    moved = {name for name, value in fresh.items() if value}
    assert moved <= {
        'disagg_agent_arena_bytes{state="total"}',
        'disagg_agent_transport_info{transport="unknown"}',
    }
    for name in (
        'disagg_agent_arena_bytes{state="unsettled"}',
        "disagg_agent_late_settled_total",
        "disagg_agent_poisoned_lanes",
        'disagg_agent_peers{state="down"}',
        "disagg_agent_heartbeat_age_worst_seconds",
        'disagg_agent_preflight_samples_total{result="failed"}',
        'disagg_agent_control_refusals_total{reason="crowded"}',
        'disagg_agent_transfer_timeouts_total{stage="notify",state_type="mamba"}',
        'disagg_agent_transfer_failures_total{cause="DigestMismatch",state_type="swa"}',
    ):
        assert name in fresh
    assert not any("pod" in name or "room" in name for name in fresh)
