"""One agent alone: what its engine, its probes and its operator are told."""

import dataclasses
import json
import socket
from pathlib import Path

import msgspec
import pytest

from disagg_transfer import cli
from disagg_transfer.client import RegistrationError, TransferFailed, UnknownStateTypeError
from disagg_transfer.codec import frame
from disagg_transfer.engine_messages import ENGINE_PROTOCOL
from disagg_transfer.errors import AgentUnavailableError, SettingsError
from disagg_transfer.local import LocalAgent


@pytest.fixture(scope="module")
def prefill(tmp_path_factory):
    with LocalAgent(
        tmp_path_factory.mktemp("prefill"),
        role="prefill",
        state_types=["kv", "mamba", "dsa", "swa", "none"],
    ) as agent:
        yield agent


@pytest.fixture(scope="module")
def decode(tmp_path_factory):
    limits = {"default": 5, "stages": {"bootstrap": 0.4}}
    folder = tmp_path_factory.mktemp("decode")
    with LocalAgent(folder, role="decode", timeouts=limits) as agent:
        yield agent


def test_a_pull_from_where_nobody_listens_names_the_address(decode, rooms, kit):
    engine = kit.connect(decode, "decode", kit.every_type)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        peer = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TransferFailed) as caught:
            engine.pull(next(rooms), peer=peer, expect=kit.items)
    assert (caught.value.cause, caught.value.stage) == ("PeerUnreachable", "bootstrap")
    assert peer in caught.value.detail
    told = {row.type: row.last_failure.cause for row in decode.report().state_types}
    assert told == dict.fromkeys(("kv", "mamba", "none", "nsa", "swa"), "PeerUnreachable")
    engine.close()


@pytest.mark.parametrize("peer", ["host:0", "host:99999", "a b", "host:x", "[::1"])
def test_an_address_that_is_none_is_refused_by_name(decode, rooms, kit, peer):
    engine = kit.connect(decode, "decode", kit.every_type)
    with pytest.raises(TransferFailed, match="is not host or host:port"):
        engine.pull(next(rooms), peer=peer, expect=kit.items)
    engine.close()


def test_readiness_says_what_is_missing(decode, kit):
    assert decode.get("/livez") == decode.get("/startupz") == b"ok\n"
    kit.until(lambda: decode.report().not_ready_reason == "EngineNotRegistered")
    engine = kit.connect(decode, "decode", kit.every_type)
    kit.until(lambda: decode.report().not_ready_reason == "NoPeers")
    engine.close()


def test_a_report_is_held_back_until_something_changes(prefill, kit):
    kit.until(lambda: not prefill.report().engine.connected)
    cursor = kit.until(lambda: settled_cursor(prefill, kit))
    held = kit.in_thread(prefill.get, f"/v1/report?cursor={cursor}&wait_s=20")
    assert prefill.report().cursor == cursor
    assert not held.done()
    engine = kit.connect(prefill, "prefill", kit.every_type)
    assert json.loads(held.result(2))["cursor"] > cursor
    assert json.loads(prefill.get(f"/v1/report?cursor={cursor}&wait_s=20"))["ready"]
    engine.close()


def settled_cursor(agent, kit):
    before = agent.report().cursor
    agent.get(f"/v1/report?cursor={before}&wait_s=0.3")
    return before if agent.report().cursor == before else None


def test_every_row_and_series_is_there_at_zero_once_registered(tmp_path, kit):
    with LocalAgent(tmp_path, role="prefill") as agent:
        engine = kit.connect(agent, "prefill", kit.every_type)
        report = kit.until(lambda: (r := agent.report()).ready and r)
        text = agent.get("/metrics").decode()
        engine.close()
    rows = {row.type: (row.transfers, row.failures) for row in report.state_types}
    assert rows == dict.fromkeys(("kv", "mamba", "none", "nsa", "swa"), (0, 0))
    for series in (
        'disagg_agent_transfers_total{state_type="nsa"} 0.0',
        'disagg_agent_transfer_timeouts_total{stage="notify",state_type="mamba"} 0.0',
        'disagg_agent_transfer_failures_total{cause="DigestMismatch",state_type="swa"} 0.0',
        'disagg_agent_control_refusals_total{reason="authentication"} 0.0',
    ):
        assert series in text


def test_an_engine_of_an_unknown_state_type_is_refused_by_name(prefill, kit):
    strange = dataclasses.replace(kit.part("kv"), name="tail", state_type="dsa_tail")
    with pytest.raises(UnknownStateTypeError, match=r"'dsa_tail' is not known; .* kv, mamba"):
        kit.connect(prefill, "prefill", (strange,))


def test_an_engine_without_a_declared_state_type_is_refused_with_both_lists(prefill, kit):
    told = r"components are of kv; .* says kv, mamba, nsa, swa"
    with pytest.raises(RegistrationError, match=told):
        kit.connect(prefill, "prefill", (kit.part("kv"),))


def test_an_engine_of_another_release_is_told_of_though_nothing_reaches_it(prefill, kit):
    kit.until(lambda: not prefill.report().engine.connected)
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(prefill.socket_path)
        plain.sendall(frame(msgspec.msgpack.encode(["Register", {"call": 0, "protocol": 2}])))
        assert plain.recv(1) == b""
    report = kit.until(lambda: refused(prefill.report()))
    assert f"none of engine protocol {ENGINE_PROTOCOL}" in report.not_ready_message
    assert "use engine and agent images of the same release" in report.not_ready_message
    engine = kit.connect(prefill, "prefill", kit.every_type)
    kit.until(lambda: prefill.report().ready)
    engine.close()


def refused(report):
    return report.not_ready_reason == "EngineRefused" and report


def test_a_refusal_is_why_the_agent_is_not_ready_until_an_engine_registers(prefill, kit):
    kit.until(lambda: not prefill.report().engine.connected)
    with pytest.raises(RegistrationError):
        kit.connect(prefill, "prefill", (kit.part("kv"),))
    report = prefill.report()
    assert (report.ready, report.not_ready_reason) == (False, "EngineRefused")
    assert "components are of kv; spec.model.stateTypes" in report.not_ready_message
    cursor = kit.until(lambda: settled_cursor(prefill, kit))
    held = kit.in_thread(prefill.get, f"/v1/report?cursor={cursor}&wait_s=20")
    with pytest.raises(RegistrationError):
        kit.connect(prefill, "decode", kit.every_type)
    assert json.loads(held.result(2))["notReadyMessage"].startswith("role: the engine is 'decode'")
    engine = kit.connect(prefill, "prefill", kit.every_type)
    kit.until(lambda: prefill.report().ready)
    engine.close()
    kit.until(lambda: prefill.report().not_ready_reason == "EngineNotRegistered")


def test_an_engine_of_the_other_role_is_refused(prefill, kit):
    with pytest.raises(RegistrationError, match="role: the engine is 'decode'"):
        kit.connect(prefill, "decode", kit.every_type)


def test_a_component_registered_twice_is_refused(prefill, kit):
    with pytest.raises(RegistrationError, match="'kv' is registered twice"):
        kit.connect(prefill, "prefill", (kit.part("kv"), kit.part("kv")))


def test_a_call_of_the_other_role_is_refused(prefill, kit):
    engine = kit.connect(prefill, "prefill", kit.every_type)
    with pytest.raises(TransferFailed, match="Stream is a decode engine's call"):
        engine.pull(1, peer="x:1", expect={})
    engine.close()


def test_the_newest_engine_is_the_engine(prefill, kit):
    older = kit.connect(prefill, "prefill", kit.every_type)
    newer = kit.connect(prefill, "prefill", kit.every_type)
    assert older.lost.wait(2)
    newer.begin(1)
    newer.abort(1, "done")
    older.close()
    newer.close()


def test_the_engine_socket_is_for_its_user_alone(prefill):
    assert Path(prefill.socket_path).stat().st_mode & 0o777 == 0o600


def test_faults_are_refused_unless_switched_on(prefill):
    with pytest.raises(SettingsError, match="DISAGG_FAULT_SWITCH is 'disabled'"):
        prefill.fault("withhold", "kv")
    assert prefill.report().faults == ()


def test_a_human_is_shown_the_report_peers_and_requests(prefill, kit, monkeypatch, capsys):
    monkeypatch.setenv("DISAGG_SOCKET", prefill.socket_path)
    engine = kit.connect(prefill, "prefill", kit.every_type)
    engine.begin(42)
    assert cli.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pod        prefill, prefill of revision r1\nready      yes\n")
    assert "\nSTATE TYPE  TRANSFERS  BYTES" in shown
    assert "\nmamba       0          0 B " in shown
    assert cli.main(["peers"]) == 0
    assert capsys.readouterr().out == "no peers\n"
    assert cli.main(["transfers"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["42", "0", "NEW", "-"]
    assert cli.main(["status", "--json"]) == cli.main(["peers", "--json"]) == 0
    assert '"pod": "prefill"' in capsys.readouterr().out
    assert cli.main(["transfers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["transfers"][0]["room"] == 42
    assert cli.main(["probe"]) == 1
    assert "run probe in a decode pod" in capsys.readouterr().err
    assert cli.main(["fault", "withhold", "kv"]) == 1
    assert "DISAGG_FAULT_SWITCH is 'disabled'" in capsys.readouterr().err
    engine.abort(42, "done")
    engine.close()
    monkeypatch.setenv("DISAGG_SOCKET", "/nowhere/agent.sock")
    assert cli.main(["status"]) == 1
    told = capsys.readouterr().err
    assert "no agent answers on /nowhere/admin.sock: No such file or directory; run this" in told


def test_an_agent_told_to_stop_does_so_at_once_with_an_engine_connected(tmp_path, kit):
    with LocalAgent(tmp_path, role="prefill") as agent:
        engine = kit.connect(agent, "prefill", kit.every_type)
        agent.process.terminate()
        assert agent.process.wait(5) == 0
        assert engine.lost.wait(1)
        assert "Traceback" not in agent.log
        engine.close()


def test_an_agent_that_is_not_there_is_said_to_be_missing(tmp_path, kit):
    class Nowhere:
        socket_path = str(tmp_path / "agent.sock")

    with pytest.raises(AgentUnavailableError, match=r"agent.sock within 0.1 s"):
        kit.connect(Nowhere, "decode", (kit.part("kv"),), timeout_s=0.1)


def test_an_agent_with_a_bad_setting_ends_naming_it(tmp_path):
    with (
        pytest.raises(AgentUnavailableError, match="DISAGG_ROLE: 'both' is not one of"),
        LocalAgent(tmp_path, role="both"),
    ):
        pass
