"""Every bad value of the agent's environment is refused by the variable's name."""

import pytest

from disagg_transfer.contract import Stage
from disagg_transfer.errors import SettingsError
from disagg_transfer.settings import Address, from_environment, parse_address, read_keys
from disagg_transfer.ucx import Transport


@pytest.fixture
def env(tmp_path):
    (tmp_path / "key").write_bytes(b"00" * 32 + b"\n")
    return {
        "DISAGG_NAMESPACE": "n",
        "DISAGG_DEPLOYMENT": "d",
        "DISAGG_REVISION": "r",
        "DISAGG_ROLE": "decode",
        "DISAGG_POD": "p",
        "DISAGG_KEY_FILE": str(tmp_path / "key"),
    }


def test_defaults_are_those_of_the_contract(env):
    settings = from_environment(env)
    assert settings.keys == (bytes(32),)
    assert (settings.control_port, settings.http_port) == (8998, 9464)
    assert settings.timeouts.limit(Stage.WIRE, "kv") == 30
    assert settings.timeouts.limit(Stage.QUEUE) == 120
    assert (settings.integrity.mode, settings.fault_switch) == ("always", "disabled")
    assert str(settings.admin_socket) == "/run/disagg/admin.sock"


def test_a_full_environment_is_read(env):
    settings = from_environment(
        {
            **env,
            "DISAGG_STATE_TYPES": "kv, dsa",
            "DISAGG_PEER_SERVICE": "svc.ns.svc,10.0.0.1:1234",
            "DISAGG_ARENA_BYTES": "5000",
            "DISAGG_TRANSPORT": "rdma",
            "DISAGG_NET_DEVICES": "mlx5_0:1, mlx5_1:1",
            "DISAGG_DATA_PORTS": "22000-22099",
            "DISAGG_TIMEOUTS": '{"default": 3, "stages": {"wire": 1.5}, "stateTypes": {"dsa": 2}}',
        }
    )
    assert settings.state_types == {"kv", "nsa"}
    assert settings.peer_services == (
        Address(host="svc.ns.svc", port=8998),
        Address(host="10.0.0.1", port=1234),
    )
    assert settings.arena_bytes == 8192
    assert settings.ucx.transport is Transport.RDMA
    assert settings.ucx.devices == ("mlx5_0:1", "mlx5_1:1")
    assert settings.ucx.ports == (22000, 22099)
    assert settings.timeouts.limit(Stage.WIRE, "nsa") == 2
    assert settings.timeouts.limit(Stage.WIRE) == 1.5
    assert settings.timeouts.limit(Stage.SCATTER) == 3


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DISAGG_POD", "", "must be 1 to 253 characters"),
        ("DISAGG_ROLE", "", "'' is not one of prefill, decode"),
        ("DISAGG_ROLE", "mono", "'mono' is not one of prefill, decode"),
        ("DISAGG_HTTP_PORT", "65536", "not a whole number within 0..65535"),
        ("DISAGG_CONTROL_PORT", "-1", "not a whole number"),
        ("DISAGG_ARENA_BYTES", "1GiB", "not a whole number within 4096.."),
        ("DISAGG_RANKS", "0", "'0' is not a whole number within 1..64"),
        ("DISAGG_RANK", "-1", "not a whole number within 0..1023"),
        ("DISAGG_STATE_TYPES", "kv,ring", "'ring' is not known; known: block_scale"),
        ("DISAGG_INTEGRITY", "maybe", "'maybe' is not one of always, sampled, off"),
        ("DISAGG_INTEGRITY_RATE", "0.5", "'0.5' is set, but DISAGG_INTEGRITY is 'always'"),
        ("DISAGG_PREFLIGHT", "on", "'on' is not one of required, observe, off"),
        ("DISAGG_TRANSPORT_POLICY", "RDMA", "not one of PreferRDMA, RequireRDMA, Any"),
        ("DISAGG_CANARY_SECONDS", "soon", "'soon' is not seconds within 0..86400"),
        ("DISAGG_CANARY_SECONDS", "nan", "nan is not seconds within 0..86400"),
        ("DISAGG_FAULT_SWITCH", "1", "'1' is not one of enabled, disabled"),
        ("DISAGG_TRANSPORT", "ib", "'ib' is not one of any, rdma, tcp"),
        ("DISAGG_DATA_PORTS", "21000", "'21000' is not first-last with ports within 1024..65535"),
        ("DISAGG_DATA_PORTS", "21000-21014", "at least 16 of them"),
        ("DISAGG_DATA_PORTS", "65000-65536", "within 1024..65535"),
        ("DISAGG_DATA_PORTS", "80-2000", "not first-last"),
        ("DISAGG_NET_DEVICES", "eth0,mlx5 0", "'mlx5 0' is not a device name"),
        ("DISAGG_PEER_SERVICE", "a:b:c", "'a:b:c' is not host or host:port"),
        ("DISAGG_TIMEOUTS", "{", "not JSON"),
        ("DISAGG_TIMEOUTS", "[]", "must be an object"),
        ("DISAGG_TIMEOUTS", '{"defaults": 1}', "must be an object of default"),
        ("DISAGG_TIMEOUTS", '{"default": 0}', "default: 0 is not seconds"),
        ("DISAGG_TIMEOUTS", '{"default": true}', "default: True is not seconds"),
        ("DISAGG_TIMEOUTS", '{"default": NaN}', "not JSON: NaN is not a number"),
        ("DISAGG_TIMEOUTS", '{"stages": {"send": 1}}', "'send' is not one of bootstrap"),
        ("DISAGG_TIMEOUTS", '{"stages": 3}', "stages: 3 is not an object"),
        ("DISAGG_TIMEOUTS", '{"stateTypes": {"x": 1}}', "'x' is not known"),
        ("DISAGG_KEY_FILE", "/nowhere/key", "cannot read /nowhere/key"),
    ],
)
def test_a_bad_value_is_refused_by_name(env, name, value, told):
    with pytest.raises(SettingsError, match=f"^{name}") as caught:
        from_environment({**env, name: value})
    assert told in str(caught.value)


@pytest.mark.parametrize("rate", ["0", "1", "-1", "nan", "half"])
def test_a_rate_that_is_no_share_is_refused(env, rate):
    env = {**env, "DISAGG_INTEGRITY": "sampled"}
    assert from_environment(env).integrity.rate == 0.1
    with pytest.raises(SettingsError, match=f"^DISAGG_INTEGRITY_RATE: '{rate}' is not a share"):
        from_environment({**env, "DISAGG_INTEGRITY_RATE": rate})


def test_the_arena_is_divided_among_the_ranks_in_whole_pages(env):
    env = {**env, "DISAGG_RANKS": "3", "DISAGG_RANK": "2", "DISAGG_ARENA_BYTES": "40000"}
    settings = from_environment(env)
    assert (settings.ranks, settings.node, settings.arena_bytes) == (3, 2, 16384)
    with pytest.raises(SettingsError, match=r"DISAGG_ARENA_BYTES: .* within 12288\.\."):
        from_environment({**env, "DISAGG_ARENA_BYTES": "12287"})


def test_addresses_are_read_in_every_form():
    assert parse_address("h") == Address(host="h", port=8998)
    assert str(parse_address("[::1]:80")) == "[::1]:80"


def test_limits_of_the_agent_have_defaults_and_can_be_set(env):
    settings = from_environment(env)
    assert (settings.heartbeat.limit_s, settings.heartbeat.every_s) == (3.0, 1.0)
    assert (settings.quarantine.share, settings.quarantine.lasting_s) == (0.5, 120.0)
    settings = from_environment(
        {
            **env,
            "DISAGG_HEARTBEAT": '{"limitSeconds": 0.6}',
            "DISAGG_QUARANTINE": '{"share": 0.25, "lastingSeconds": 7}',
            "DISAGG_CREDITS": '{"bytes": 5, "share": 0}',
        }
    )
    assert settings.heartbeat.every_s == pytest.approx(0.2)
    assert (settings.quarantine.share, settings.quarantine.lasting_s) == (0.25, 7.0)
    assert settings.quarantine.lasting_share == 0.1
    assert (settings.credits.nbytes, settings.credits.reads, settings.credits.share) == (5, 64, 0)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("DISAGG_QUARANTINE", '{"share": 1.5}', "share: 1.5 is not a number within 0..1"),
        ("DISAGG_QUARANTINE", '{"share": true}', "share: True is not a number"),
        ("DISAGG_QUARANTINE", '{"half": 1}', "must be an object of share, lastingShare"),
        ("DISAGG_HEARTBEAT", "3", "must be an object of limitSeconds"),
        ("DISAGG_HEARTBEAT", '{"limitSeconds": 0.1}', "limitSeconds: 0.1 is less than 0.3"),
        ("DISAGG_HEARTBEAT", "{", "not JSON"),
        ("DISAGG_CREDITS", '{"reads": 0}', "reads: 0 is not a whole number within 1.."),
    ],
)
def test_a_limit_that_is_none_is_refused(env, name, value, told):
    with pytest.raises(SettingsError, match=f"{name}.*{told}"):
        from_environment({**env, name: value})


@pytest.mark.parametrize(
    ("raw", "keys"),
    [
        (b"a text of sixteen", (b"a text of sixteen",)),
        (b"0f" * 16 + b"\n" + b"another key, old\n", (b"\x0f" * 16, b"another key, old")),
        (b"\r\n".join((b"a" * 17, b"b" * 17)), (b"a" * 17, b"b" * 17)),
        (bytes(range(1, 33)), (bytes(range(1, 32 + 1)).strip(),)),  # no text, so one key
    ],
)
def test_a_key_file_holds_one_key_or_two_lines(tmp_path, raw, keys):
    (tmp_path / "key").write_bytes(raw)
    assert read_keys(tmp_path / "key") == keys


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "holds 0 keys"),
        (b"short", "holds 1 keys, the shortest of 5 bytes"),
        (b"a" * 16 + b"\nshort", "holds 2 keys, the shortest of 5 bytes"),
        (b"a" * 16 + (b"\n" + b"b" * 16) * 2, "holds 3 keys"),
        (b"a" * 5000, "longer than 4096 bytes"),
    ],
)
def test_a_key_file_with_anything_else_is_refused(tmp_path, raw, told):
    (tmp_path / "key").write_bytes(raw)
    with pytest.raises(SettingsError, match=told):
        read_keys(tmp_path / "key")
