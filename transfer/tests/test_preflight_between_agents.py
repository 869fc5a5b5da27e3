"""Real agents sample each other over the real lane: told, gating, repeated, never in the way."""

import contextlib
import json
import os
import sys
import urllib.error

import pytest

from disagg_transfer import cli
from disagg_transfer.errors import AgentUnavailableError
from disagg_transfer.local import LocalAgent

# An agent like any other, but for one function: what prefill puts into its samples is wrong while
# `flag` is there, or, as "silent", nothing is answered; "few" lets all agents have two pairs. Patience is half a second.
ODD_AGENT = """
import functools, pathlib, sys
from disagg_transfer import settings
from disagg_transfer.agent import preflight, samples
flag, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
pattern, wanted = samples.pattern, samples.Samples._wanted
if kind == "spoiled":
    samples.pattern = lambda seed, n: bytes(n) if flag.exists() else pattern(seed, n)
if kind == "silent":
    samples.Samples._wanted = lambda *words: None if flag.exists() else wanted(*words)
if kind == "few":
    preflight.spanning_pairs = functools.partial(preflight.spanning_pairs, limit=2)
impatient = functools.partial(settings.PreflightSettings, cold_s=0.5, warm_s=0.5)
settings.PreflightSettings = impatient
from disagg_transfer.cli import main
sys.exit(main(["serve"]))
"""


@pytest.fixture(scope="module")
def flag(tmp_path_factory):
    path = tmp_path_factory.mktemp("flag") / "flag"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def odd(tmp_path_factory, flag):
    """How to start an agent of one kind, for LocalAgent's `launch`."""
    script = tmp_path_factory.mktemp("odd") / "odd_agent.py"
    script.write_text(ODD_AGENT)
    return lambda kind: {"launch": [sys.executable, str(script), str(flag), kind]}


@pytest.fixture(autouse=True)
def sound(flag):
    flag.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def watched_agents(tmp_path_factory, kit, odd):
    """Over TCP, sampled five times a second; prefill's samples can be spoiled."""
    tcp = {"DISAGG_TRANSPORT": "tcp"}
    decode = {"env": {**tcp, "DISAGG_CANARY_SECONDS": "0.2"}}
    folder = tmp_path_factory.mktemp("watched")
    with kit.agents(folder, prefill={"env": tcp, **odd("spoiled")}, decode=decode) as pair:
        yield pair


@pytest.fixture
def watched(watched_agents, kit):
    kit.until(lambda: in_state(watched_agents.decode, "passed"))
    return watched_agents


def only_row(agent):
    rows = agent.report().preflight
    return rows[0] if len(rows) == 1 else None


def in_state(agent, state):
    row = only_row(agent)
    return row if row is not None and row.state == state else None


def value(agent, name):
    text = agent.get("/metrics").decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def ready_text(agent):
    try:
        return agent.get("/readyz").decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_a_met_peer_is_sampled_and_the_row_says_how_well(watched, kit):
    row = kit.until(lambda: in_state(watched.decode, "passed"))
    assert (row.pod, row.transport, row.cause) == ("prefill", "tcp", None)
    assert row.gbps > 0
    assert row.latency_ms > 0
    assert row.passed_at == row.at
    assert "5 components" in row.detail
    report = watched.decode.report()
    assert report.transport == "tcp"
    assert report.transport_reason.startswith("prefill pod prefill: no RDMA device in this pod")
    assert watched.prefill.report().preflight == ()
    for agent in (watched.prefill, watched.decode):
        assert agent.report().arena.used == 0
    assert value(watched.decode, 'disagg_agent_preflight_samples_total{result="passed"}') >= 1


def test_preflight_off_samples_nothing(tmp_path, kit):
    with kit.agents(tmp_path, decode={"env": {"DISAGG_PREFLIGHT": "off"}}) as pair:
        kit.until(lambda: pair.decode.report().ready)
        report = pair.decode.report()
        assert (report.preflight, report.transport) == ((), "unknown")
        assert pair.prefill.report().arena.used == 0


def test_required_rdma_over_tcp_is_not_ready_and_says_why(tmp_path, kit):
    env = {"DISAGG_TRANSPORT": "tcp", "DISAGG_TRANSPORT_POLICY": "RequireRDMA"}
    with kit.agents(tmp_path, decode={"env": env}) as pair:
        kit.until(lambda: pair.decode.report().not_ready_reason == "TransportRefused")
        assert ready_text(pair.decode).startswith(
            "TransportRefused: reads from prefill pod prefill go over tcp: no RDMA device"
        )


def test_required_rdma_without_preflight_is_refused_by_name(tmp_path):
    env = {"DISAGG_PREFLIGHT": "off", "DISAGG_TRANSPORT_POLICY": "RequireRDMA"}
    told = "DISAGG_TRANSPORT_POLICY: RequireRDMA needs .* set that to observe or required"
    with (
        pytest.raises(AgentUnavailableError, match=told),
        LocalAgent(tmp_path, role="decode", env=env),
    ):
        pass


def test_a_spoiled_sample_holds_back_readiness_until_one_is_whole(tmp_path, kit, odd, flag):
    flag.touch()
    required = {"env": {"DISAGG_PREFLIGHT": "required"}}
    with kit.agents(tmp_path, prefill=odd("spoiled"), decode=required) as pair:
        row = kit.until(lambda: in_state(pair.decode, "failed"))
        assert row.cause == "DigestMismatch"
        report = pair.decode.report()
        assert (report.ready, report.not_ready_reason) == (False, "PreflightFailed")
        assert report.not_ready_message.startswith("prefill pod prefill: DigestMismatch: ")
        flag.unlink()
        kit.until(lambda: pair.decode.report().ready)
        row = only_row(pair.decode)
        assert (row.cause, row.transport) == (None, "cma")  # one namespace, nothing forbidden


def test_a_failing_canary_is_told_and_does_not_stop_requests(watched, kit, flag, rooms):
    first = only_row(watched.decode)
    again = kit.until(lambda: (row := only_row(watched.decode)).at > first.at and row)
    assert again.state == "passed"
    flag.touch()
    kit.until(lambda: in_state(watched.decode, "failed"))
    assert watched.decode.report().ready
    watched.round_trip(next(rooms))
    flag.unlink()
    kit.until(lambda: in_state(watched.decode, "passed"))


def test_a_peer_that_does_not_answer_fails_by_the_clock(tmp_path, kit, odd, flag):
    flag.touch()
    with kit.agents(tmp_path, prefill=odd("silent"), decode=odd("plain")) as pair:
        row = kit.until(lambda: in_state(pair.decode, "failed"))
        assert (row.cause, row.detail) == ("Timeout", "no whole sample within 0.5 s")
        flag.unlink()
        kit.until(lambda: in_state(pair.decode, "passed"))


def test_a_probe_by_hand_shows_rows_and_fails_as_they_do(watched, kit, flag, monkeypatch, capsys):
    monkeypatch.setenv("DISAGG_SOCKET", watched.decode.socket_path)
    assert cli.main(["probe"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["POD", "RESULT", "GB/S", "LATENCY", "TRANSPORT", "DETAIL"]
    assert row.split()[:2] == ["prefill", "passed"]
    assert cli.main(["probe", "prefill", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probes"][0]["transport"] == "tcp"
    assert cli.main(["probe", "nobody"]) == 1
    assert "no prefill pod nobody to pull from" in capsys.readouterr().err
    flag.touch()
    assert cli.main(["probe"]) == 1
    assert "DigestMismatch: " in capsys.readouterr().out
    assert cli.main(["peers"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["prefill", "up", "failed"]


def test_a_busy_arena_is_left_to_requests(watched, kit, rooms):
    room = next(rooms)
    watched.p.begin(room)
    extent = watched.p.reserve(room, 60 << 20, timeout_s=5)  # most of prefill's arena
    kit.until(lambda: "skipped: prefill pod prefill: no " in only_row(watched.decode).detail)
    assert only_row(watched.decode).state == "passed"
    del extent
    watched.p.abort(room, "done")
    kit.until(lambda: "components" in only_row(watched.decode).detail)


def test_a_restarted_peer_is_sampled_anew(watched, kit):
    first = only_row(watched.decode)
    watched.p.close()
    watched.prefill.restart()
    kit.until(lambda: watched.decode.report().preflight == ())
    watched.p = kit.connect(watched.prefill, "prefill", watched.parts)
    assert kit.until(lambda: in_state(watched.decode, "passed")).at > first.at


@pytest.mark.skipif(os.geteuid() != 0, reason="another IPC namespace takes root")
def test_peers_of_other_kinds_are_told_apart(tmp_path, kit):
    """The kernel copies between processes of one IPC namespace only. UCX prints one table for
    both far peers, so the second of them is told by what its reads are said to cost.
    """
    far = {"launch": ["unshare", "--ipc"]}
    with contextlib.ExitStack() as stack:
        prefills = [
            stack.enter_context(LocalAgent(tmp_path / pod, role="prefill", pod=pod, **options))
            for pod, options in (("far", far), ("farther", far), ("near", {}))
        ]
        peers = [f"127.0.0.1:{agent.control_port}" for agent in prefills]
        decode = stack.enter_context(LocalAgent(tmp_path / "d", role="decode", peers=peers))
        for agent in (*prefills, decode):
            role = "prefill" if agent in prefills else "decode"
            stack.enter_context(contextlib.closing(kit.connect(agent, role, kit.every_type)))
        rows = kit.until(
            lambda: (
                [row for row in decode.report().preflight if row.state == "passed"][2:]
                and decode.report().preflight
            )
        )
        assert [(row.pod, row.transport) for row in rows] == [
            ("far", "tcp"),
            ("farther", "tcp"),
            ("near", "cma"),
        ]
        assert decode.report().transport == "mixed"


def test_beyond_the_limit_every_pod_is_still_in_a_pair(tmp_path, kit, odd):
    """Two by two agents and a limit of two: only if each knows of the other decode pod do they
    choose one pair each, and not the same prefill pod.
    """
    with contextlib.ExitStack() as stack:
        prefills = [
            stack.enter_context(LocalAgent(tmp_path / pod, role="prefill", pod=pod))
            for pod in ("p0", "p1")
        ]
        peers = [f"127.0.0.1:{agent.control_port}" for agent in prefills]
        decodes = [
            stack.enter_context(
                LocalAgent(tmp_path / pod, role="decode", pod=pod, peers=peers, **odd("few"))
            )
            for pod in ("d0", "d1")
        ]
        for agent in (*prefills, *decodes):
            role = "prefill" if agent in prefills else "decode"
            stack.enter_context(contextlib.closing(kit.connect(agent, role, kit.every_type)))
        for decode, prefill in zip(decodes, ("p0", "p1"), strict=True):
            row = kit.until(lambda decode=decode: in_state(decode, "passed"))
            assert row.pod == prefill
