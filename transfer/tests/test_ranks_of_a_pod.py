"""Pods of several engine ranks: real agents, each rank an engine of its own."""

import contextlib
import subprocess
import sys

import pytest

from disagg_transfer.client import RegistrationError, TransferFailed
from disagg_transfer.local import LocalAgent

LIMITS = {"default": 10}


@contextlib.contextmanager
def engines(kit, agents, *, ranks, parts):
    """An engine for each rank, over the pods of one group, by rank."""
    local = ranks // len(agents)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                contextlib.closing(
                    kit.connect(
                        agents[rank // local], role(agents[0]), parts, rank=rank, ranks=ranks
                    )
                )
            )
            for rank in range(ranks)
        ]


def role(agent):
    return agent.report().role


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    """A prefill and a decode agent of two ranks each."""
    folder = tmp_path_factory.mktemp("ranks")
    with LocalAgent(folder / "p", role="prefill", ranks=2, timeouts=LIMITS) as prefill:
        peers = [f"127.0.0.1:{prefill.control_port}"]
        with LocalAgent(
            folder / "d", role="decode", ranks=2, peers=peers, timeouts=LIMITS
        ) as decode:
            yield prefill, decode


@pytest.fixture
def ranked(pods, kit):
    prefill, decode = pods
    with (
        engines(kit, [prefill], ranks=2, parts=kit.every_type) as p,
        engines(kit, [decode], ranks=2, parts=kit.every_type) as d,
    ):
        kit.until(lambda: decode.report().ready)
        yield p, d
    for agent in pods:
        kit.until(lambda agent=agent: agent.report().arena.used == 0)


def offer(client, room, rank, kit):
    """Every component of a room, filled with a byte that tells the rank."""
    client.begin(room)
    for part in kit.every_type:
        items = kit.items[part.name]
        extent = client.reserve(room, items * part.item_bytes, timeout_s=5)
        extent.view[:] = bytes([rank + 1]) * extent.nbytes
        last = part is kit.every_type[-1]
        aux = b"of rank %d" % rank if last else b""
        client.offer(room, part.name, extent, items=items, last=last, aux=aux)


def peer_of(agent):
    return f"127.0.0.1:{agent.control_port}"


def test_each_rank_of_a_room_gets_its_own_rank_s_bytes(pods, ranked, rooms, kit):
    prefill, _ = pods
    for room in (next(rooms), next(rooms)):
        for rank, client in enumerate(ranked[0]):
            offer(client, room, rank, kit)
        for rank, client in enumerate(ranked[1]):
            arrival = client.pull(room, peer=peer_of(prefill), expect=kit.items)
            assert arrival.aux == b"of rank %d" % rank
            found = {byte for part in arrival.payloads.values() for byte in bytes(part.view)}
            assert found == {rank + 1}
            client.release(room)
        for client in ranked[0]:
            client.wait_released(room, 5)


def test_every_pair_of_ranks_is_sampled_and_a_pod_has_one_row(pods, ranked, kit):
    _, decode = pods
    row = kit.until(lambda: (rows := decode.report().preflight) and rows[0].passed_at and rows)
    assert [(one.pod, one.state) for one in row] == [("prefill", "passed")]
    passed = 'disagg_agent_preflight_samples_total{result="passed"} '
    scraped = decode.get("/metrics").decode()
    assert float(scraped.partition(passed)[2].split()[0]) >= 2


def test_what_one_rank_fails_at_is_told_by_its_number_and_the_other_goes_on(
    pods, ranked, rooms, kit
):
    prefill, decode = pods
    room = next(rooms)
    for rank, client in enumerate(ranked[0]):
        offer(client, room, rank, kit)
    wrong = {**kit.items, "kv": 2}
    with pytest.raises(TransferFailed, match="LongPayload"):
        ranked[1][1].pull(room, peer=peer_of(prefill), expect=wrong)
    for agent in pods:
        kv = next(row for row in agent.report().state_types if row.type == "kv")
        assert kv.last_failure.detail.startswith("rank 1: component kv")
    ranked[1][0].pull(room, peer=peer_of(prefill), expect=kit.items)
    assert [(row["rank"], row["room"]) for row in decode.transfers()] == [(0, room)]
    ranked[1][0].release(room)
    ranked[0][0].wait_released(room, 5)
    ranked[0][1].abort(room, "done")


def test_a_rank_s_engine_that_goes_takes_no_other_with_it(pods, ranked, rooms, kit):
    prefill, decode = pods
    room = next(rooms)
    for rank, client in enumerate(ranked[0]):
        offer(client, room, rank, kit)
    ranked[0][1].close()
    kit.until(lambda: "no engine of rank 1 is registered" in decode.report().peers[0].detail)
    assert not decode.report().ready
    with pytest.raises(TransferFailed, match="EngineLost"):
        ranked[1][1].pull(room, peer=peer_of(prefill), expect=kit.items)
    ranked[1][0].pull(room, peer=peer_of(prefill), expect=kit.items)
    ranked[1][0].release(room)
    ranked[0][0].wait_released(room, 5)


def test_a_pod_is_ready_when_every_rank_has_its_engine(tmp_path, kit):
    with (
        LocalAgent(tmp_path, role="prefill", ranks=2) as agent,
        contextlib.closing(kit.connect(agent, "prefill", kit.every_type, rank=0, ranks=2)),
    ):
        report = agent.report()
        assert not report.engine.connected
        assert report.not_ready_message == "no engine of rank 1 has registered"
        with contextlib.closing(kit.connect(agent, "prefill", kit.every_type, rank=1, ranks=2)):
            assert agent.report().ready


def test_a_pod_needs_no_more_ranks_than_its_engines_say_there_are(pods, kit):
    prefill, _ = pods
    kit.until(lambda: not prefill.report().engine.connected)
    with contextlib.closing(kit.connect(prefill, "prefill", kit.every_type)):
        assert prefill.report().ready


@pytest.mark.parametrize(("rank", "ranks"), [(2, 4), (1, 1)])
def test_a_rank_that_is_not_of_the_pod_is_refused_by_name(pods, kit, rank, ranks):
    told = rf"the engine is rank {rank} of {ranks}; this pod has 0, 1 \(DISAGG_RANK"
    with pytest.raises(RegistrationError, match=told):
        kit.connect(pods[0], "prefill", kit.every_type, rank=rank, ranks=ranks)


def test_ranks_that_count_themselves_differently_are_refused(pods, kit):
    kit.until(lambda: not pods[0].report().engine.connected)
    with contextlib.closing(kit.connect(pods[0], "prefill", kit.every_type, rank=0, ranks=2)):
        told = "the engine of rank 1 says that there are 4, that of rank 0 2"
        with pytest.raises(RegistrationError, match=told):
            kit.connect(pods[0], "prefill", kit.every_type, rank=1, ranks=4)


SITTER = """
import sys
from disagg_transfer.client import AgentClient, Component
kv = Component(name="kv", state_type="kv", item_bytes=1, layers=1, dtype="f", page_size=1)
AgentClient.connect(
    sys.argv[1], role="prefill", model="m", components=[kv], page_size=1, timeout_s=10
)
print("registered", flush=True)
sys.stdin.read()
"""


def test_another_process_cannot_take_a_rank_until_its_engine_has_ended(tmp_path, kit):
    with LocalAgent(tmp_path, role="prefill") as agent:
        command = [sys.executable, "-c", SITTER, agent.socket_path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sitter:
            assert sitter.stdout.readline() == b"registered\n"
            told = "another engine process is connected as rank 0"
            with pytest.raises(RegistrationError, match=told):
                kit.connect(agent, "prefill", kit.every_type)
            assert agent.report().ready
            sitter.kill()
            sitter.wait()
            kit.connect(agent, "prefill", kit.every_type).close()


def test_a_group_of_several_pods_serves_the_rank_that_its_leader_does_not_have(
    tmp_path, rooms, kit
):
    """The router names the leader alone; the second rank's bytes are in the second pod."""
    with contextlib.ExitStack() as stack:

        def group(role, **options):
            return [
                stack.enter_context(
                    LocalAgent(
                        tmp_path / f"{role}{node}",
                        role=role,
                        pod=f"{role}-{node}",
                        group="g",
                        node=node,
                        timeouts=LIMITS,
                        **options,
                    )
                )
                for node in range(2)
            ]

        prefill = group("prefill")
        decode = group("decode", peers=[peer_of(agent) for agent in prefill])
        p = stack.enter_context(engines(kit, prefill, ranks=2, parts=kit.every_type))
        d = stack.enter_context(engines(kit, decode, ranks=2, parts=kit.every_type))
        for agent in decode:
            kit.until(lambda agent=agent: agent.report().ready)
        room = next(rooms)
        for rank, client in enumerate(p):
            offer(client, room, rank, kit)
        for rank, client in enumerate(d):
            arrival = client.pull(room, peer=peer_of(prefill[0]), expect=kit.items)
            assert (arrival.prefill_pod, arrival.aux) == (
                f"prefill-{rank}",
                b"of rank %d" % rank,
            )
            client.release(room)
        for client in p:
            client.wait_released(room, 5)
