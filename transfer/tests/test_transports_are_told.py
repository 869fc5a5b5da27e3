"""What reads really go over, read from what UCX prints, and why that is not RDMA."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_transfer.contract import Transport
from disagg_transfer.rdma import rdma_facts
from disagg_transfer.transport import Choices, RdmaFacts, ReadTable, UcxOutput, family, why_not_rdma
from disagg_transfer.ucx_log import UcxLog

# As UCX 1.23 printed them between two pods of one machine.
WRITE = """\
[1795378747.950898] [vm:11627:0]   +--------+-------------+-----------------------------------+
[1795378747.950898] [vm:11627:0]   | target self cfg#0                                        |
[1795378747.950898] [vm:11627:0]   | remote memory write by ucp_put* from host memory to host |
[1795378747.950898] [vm:11627:0]   +--------+-------------+-----------------------------------+
[1795378747.950898] [vm:11627:0]   | Range  | Description |              Config               |
[1795378747.950898] [vm:11627:0]   +--------+-------------+-----------------------------------+
[1795378747.950898] [vm:11627:0]   | 0..inf | zero-copy   | cma/memory                        |
[1795378747.950898] [vm:11627:0]   +--------+-------------+-----------------------------------+
"""
READ_TCP = """\
[1795379084.527875] [vm:14524:0]   +--------+--------------------+------------------------------------+
[1795379084.527875] [vm:14524:0]   | production-namespace/qwen3-next inter-node cfg#1                  |
[1795379084.527875] [vm:14524:0]   | remote memory read by ucp_get*(multi) into host memory from host |
[1795379084.527875] [vm:14524:0]   +--------+--------------------+------------------------------------+
[1795379084.527875] [vm:14524:0]   | Range  |    Description     |               Config               |
[1795379084.527875] [vm:14524:0]   +--------+--------------------+------------------------------------+
[1795379084.527875] [vm:14524:0]   | 0..inf | software emulation | tcp/eth0                           |
[1795379084.527875] [vm:14524:0]   +--------+--------------------+------------------------------------+
"""
READ_RDMA = READ_TCP.replace(
    "| 0..inf | software emulation | tcp/eth0                           |\n",
    "| 0..255 | software emulation | tcp/eth0                           |\n"
    "[1795379084.527875] [vm:14524:0]   "
    "| 256..inf | zero-copy | 50% on rc_mlx5/mlx5_0:1/path0 and 50% on rc_mlx5/mlx5_1:1/path0 |\n",
)
WARNING = (
    "[1795379084.5] [vm:1:0]  ucp_context.c:1508 UCX  WARN  transport 'cuda_copy' is missing\n"
)
TCP = ReadTable(transport=Transport.TCP, configuration="tcp/eth0", emulated=True)


def read(*texts):
    output = UcxOutput()
    rest = [message for text in texts for message in output.feed(text)]
    return output.read_tables(), rest


def test_a_table_of_reads_says_the_transport_and_other_tables_do_not():
    tables, rest = read(WRITE, READ_TCP)
    assert (tables, rest) == ((TCP,), [])


def test_the_largest_size_decides():
    ((table,), _) = read(READ_RDMA)
    assert (table.transport, table.emulated) == (Transport.RDMA, False)
    assert "mlx5_1:1" in table.configuration


def test_what_is_no_table_is_handed_on():
    tables, rest = read(WARNING, READ_TCP, "plain words\n\n")
    assert tables == (TCP,)
    assert rest == [WARNING.split("]  ", 1)[1].strip(), "plain words"]


def test_tables_of_two_threads_may_interleave():
    other = READ_RDMA.replace("[vm:14524:0]", "[vm:14524:1]")
    mixed = [
        line
        for pair in zip(READ_TCP.splitlines(), other.splitlines(), strict=False)
        for line in pair
    ]
    mixed += other.splitlines()[len(READ_TCP.splitlines()) :]
    tables, _ = read("\n".join(mixed) + "\n")
    assert {table.transport for table in tables} == {Transport.TCP, Transport.RDMA}


@given(st.integers(0, len(WRITE + WARNING + READ_TCP)))
def test_text_may_be_cut_anywhere(at):
    text = WRITE + WARNING + READ_TCP
    tables, rest = read(text[:at], text[at:])
    assert (tables, len(rest)) == ((TCP,), 1)


@given(
    st.lists(
        st.one_of(
            st.text(max_size=80), st.sampled_from((WRITE + READ_TCP).splitlines(keepends=True))
        )
    )
)
def test_no_text_makes_the_reader_fail(pieces):
    output = UcxOutput()
    for piece in pieces:
        assert all(isinstance(message, str) for message in output.feed(piece))
    assert len(output.read_tables()) <= len(pieces)


@pytest.mark.parametrize(
    ("configuration", "transport"),
    [
        ("tcp/lo", "tcp"),
        ("52% on tcp/lo and 48% on tcp/eth0", "tcp"),
        ("rc_mlx5/mlx5_0:1", "rdma"),
        ("dc_mlx5/mlx5_0:1/path0", "rdma"),
        ("rc_verbs/efa_0:1", "rdma"),
        ("srd/rdmap0s6:1", "rdma"),
        ("cuda_ipc/cuda", "cuda_ipc"),
        ("cuda_copy/cuda, rc_mlx5/mlx5_0:1", "rdma"),
        ("90% on rc_mlx5/mlx5_0:1 and 10% on tcp/eth0", "tcp"),  # as slow as its slowest part
        ("cma/memory", "cma"),
        ("posix/memory", "shm"),
        ("sysv/memory", "shm"),
        ("cuda_copy/cuda", "unknown"),
        ("carrier pigeon", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_configuration_has_a_family(configuration, transport):
    assert family(configuration) == transport


def feed(choices, text):
    assert list(choices.output.feed(text)) == []


def test_a_peer_that_prints_no_table_has_the_one_of_equal_cost():
    choices = Choices()
    choices.absorb()
    feed(choices, READ_TCP)
    assert choices.resolve(cost=5000) == TCP
    choices.absorb()
    feed(choices, READ_RDMA)
    assert choices.resolve(cost=20).transport is Transport.RDMA
    for cost, transport in ((5000, Transport.TCP), (20, Transport.RDMA)):
        choices.absorb()
        assert choices.resolve(cost).transport is transport
    choices.absorb()
    assert choices.resolve(cost=7) is None  # one or the other: nobody can tell


def test_where_all_reads_go_alike_a_table_of_a_request_will_do():
    choices = Choices()
    feed(choices, READ_TCP)
    choices.absorb()
    assert choices.resolve(cost=1) == TCP
    assert Choices().resolve(cost=1) is None


SOUND = RdmaFacts(
    devices=("mlx5_0", "mlx5_1"),
    active=("mlx5_0:1",),
    verbs=True,
    memlock_bytes=None,
    arena_bytes=1 << 28,
    tls="",
    net_devices="",
)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"devices": (), "active": ()}, "no RDMA device in this pod; request one"),
        ({"verbs": False}, "mlx5_0, mlx5_1 have no /dev/infiniband/uverbs"),
        ({"active": ()}, "no port of RDMA devices mlx5_0, mlx5_1 is active"),
        ({"memlock_bytes": 8 << 20}, "memlock limit 8388608 bytes < arena 268435456 bytes; raise"),
        (
            {"net_devices": "eth0"},
            "UCX_NET_DEVICES=eth0 names no active RDMA port; active: mlx5_0:1",
        ),
        ({"net_devices": "mlx5_1:1"}, "UCX_NET_DEVICES=mlx5_1:1 names no active RDMA port"),
        ({"tls": "tcp,cuda_copy"}, "UCX_TLS=tcp,cuda_copy leaves out rc, dc and ud"),
        ({"tls": "^ib"}, "UCX_TLS=^ib leaves out rc, dc and ud"),
        ({"tls": "^rc,dc,ud"}, "leaves out rc, dc and ud"),
        ({}, "RDMA ports mlx5_0:1 are active, but UCX chose tcp/eth0: the peer has no RDMA"),
        ({"net_devices": "mlx5_0", "tls": "^rc"}, "but UCX chose tcp/eth0"),
        ({"net_devices": "mlx5_0:1", "tls": "rc_x,cuda_copy"}, "but UCX chose tcp/eth0"),
        ({"net_devices": "all", "tls": "all", "memlock_bytes": 1 << 28}, "but UCX chose tcp/eth0"),
    ],
)
def test_the_reason_for_not_being_rdma_is_the_most_basic_one(facts, told):
    assert told in why_not_rdma(TCP, dataclasses.replace(SOUND, **facts))


def test_rdma_needs_no_reason_unless_reads_are_emulated():
    rdma = ReadTable(transport=Transport.RDMA, configuration="rc_mlx5/mlx5_0:1", emulated=False)
    assert why_not_rdma(rdma, SOUND) == ""
    emulated = dataclasses.replace(rdma, emulated=True)
    assert "emulated by messages" in why_not_rdma(emulated, SOUND)
    assert "UCX has not said what it uses" in why_not_rdma(None, SOUND)


def test_rdma_devices_are_read_from_the_kernel_s_files(tmp_path):
    for port, state in (("mlx5_0/ports/1", "4: ACTIVE"), ("mlx5_1/ports/1", "1: DOWN")):
        folder = tmp_path / "sys/class/infiniband" / port
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{state}\n")
    verbs = tmp_path / "dev/infiniband"
    verbs.mkdir(parents=True)
    status = tmp_path / "proc/self/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    env = {"UCX_TLS": "rc", "UCX_NET_DEVICES": "mlx5_0:1"}
    facts = rdma_facts(env, arena_bytes=5, root=tmp_path)
    assert (facts.devices, facts.active, facts.verbs) == (
        ("mlx5_0", "mlx5_1"),
        ("mlx5_0:1",),
        False,
    )
    assert (facts.tls, facts.net_devices, facts.arena_bytes) == ("rc", "mlx5_0:1", 5)
    (verbs / "uverbs0").touch()
    status.write_text("CapEff:\t0000000000004000\n")  # IPC_LOCK: no limit holds
    facts = rdma_facts({}, arena_bytes=5, root=tmp_path)
    assert (facts.verbs, facts.memlock_bytes) == (True, None)
    bare = rdma_facts({}, arena_bytes=5, root=tmp_path / "nowhere")
    assert (bare.devices, bare.active, bare.verbs) == ((), (), False)


def test_ucx_is_told_where_to_write_only_while_it_is_loaded():
    env = {"PATH": "/bin"}
    log = UcxLog(env)
    with log.opened():
        path = env["UCX_LOG_FILE"]
        assert env["UCX_PROTO_INFO"] == "y"
        with Path(path).open("a") as file:
            file.write("one\n")
    assert env == {"PATH": "/bin"}
    assert (log.drain(), log.drain(), log.obstacle) == ("one\n", "", "")


def test_a_log_file_of_somebody_else_is_left_alone_and_told():
    env = {"UCX_LOG_FILE": "/dev/null"}
    log = UcxLog(env)
    with log.opened():
        assert env == {"UCX_LOG_FILE": "/dev/null"}
    assert log.drain() == ""
    assert log.obstacle == "UCX_LOG_FILE=/dev/null is set, so what UCX chose cannot be read"
