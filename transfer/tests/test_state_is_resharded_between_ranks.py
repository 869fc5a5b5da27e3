"""Unequal tensor parallelism for real: agents, engine ranks with pools, and the state compared."""

import contextlib
import dataclasses

import pytest
import torch

from disagg_transfer.client import AgentClient, Component, TransferFailed
from disagg_transfer.engines.pages import Pages
from disagg_transfer.engines.shards import Group, Rank, Split, shard
from disagg_transfer.local import LocalAgent

PAGE = 4  # tokens
ROWS = 12  # pages and slots of every pool
HEADS = Split(axis=1, groups=(Group(heads=4),))
CONV = Split(axis=0, groups=(Group(heads=4, width=2), Group(heads=4, width=2), Group(heads=8)))
TEMPORAL = Split(axis=0, groups=(Group(heads=8),))
WHOLE = Split()


@dataclasses.dataclass(frozen=True)
class Part:
    """One component: its whole tensors, one for each layer and kind, and the rows of a request."""

    state_type: str
    split: Split
    shape: tuple[int, ...]
    taken: tuple[int, ...]  # rows on prefill's side
    put: tuple[int, ...]  # rows on decode's
    tensors: int = 2


MODEL = {
    "kv": Part("kv", HEADS, (PAGE, 4, 8), (7, 2, 9), (1, 4, 3), tensors=4),
    "nsa": Part("nsa", WHOLE, (PAGE, 6), (7, 2, 9), (1, 4, 3)),
    "conv": Part("mamba", CONV, (24, 3), (5,), (2,)),
    "temporal": Part("mamba", TEMPORAL, (8, 4, 2), (5,), (2,)),
}
WITH_SWA = {**MODEL, "swa": Part("swa", HEADS, (PAGE, 4, 8), (9,), (3,))}
FULL = {
    name: [torch.randn(ROWS, *part.shape) for _ in range(part.tensors)]
    for name, part in WITH_SWA.items()
}


class EngineRank:
    """Pools of one rank's share, registered with its agent."""

    def __init__(self, agent, role, model, number, of):
        self.rank, self.model = Rank(number=number, of=of), model
        filled = role == "prefill"
        self.pools = {
            name: [
                each if filled else torch.zeros_like(each)
                for each in (shard(t, part.split, rank=self.rank) for t in FULL[name])
            ]
            for name, part in model.items()
        }
        self.pages = {
            name: Pages(self.pools[name], splits=[part.split] * part.tensors)
            for name, part in model.items()
        }
        self.client = AgentClient.connect(
            agent.socket_path,
            role=role,
            model="m",
            components=[self._component(name, part) for name, part in model.items()],
            page_size=PAGE,
            timeout_s=10,
            rank=number,
            ranks=of,
        )

    def _component(self, name, part):
        return Component(
            name=name,
            state_type=part.state_type,
            item_bytes=self.pages[name].item_bytes,
            layers=2,
            dtype="float32",
            page_size=0 if part.state_type == "mamba" else PAGE,
        )

    def offer(self, room, *, at_once=2, begin=True, have=None):
        if begin:
            self.client.begin(room)
        for name, part in self.model.items():
            for first in range((have or {}).get(name, 0), len(part.taken), at_once):
                rows = torch.tensor(part.taken[first : first + at_once])
                nbytes = len(rows) * self.pages[name].item_bytes
                extent = self.client.reserve(room, nbytes, timeout_s=5)
                self.pages[name].gather(rows, extent.view)
                final = first + at_once >= len(part.taken)
                last = final and name == list(self.model)[-1]
                aux = b"token" if last else b""
                self.client.offer(
                    room,
                    name,
                    extent,
                    items=len(rows),
                    first=first,
                    final=final,
                    last=last,
                    aux=aux,
                )

    def stream(self, room, peer, *, have=None):
        expect = {name: len(part.put) for name, part in self.model.items()}
        return self.client.stream(room, peer=peer, expect=expect, have=have)

    def take(self, room, peer, *, have=None):
        """The chunks' first items, once they are in its pools."""
        firsts = set()
        with self.stream(room, peer, have=have) as chunks:
            for chunk in chunks:
                firsts.add((chunk.component, chunk.first, chunk.skip))
                rows = self.model[chunk.component].put[chunk.first : chunk.first + chunk.items]
                self.pages[chunk.component].scatter_shard(
                    torch.tensor(rows),
                    chunk.view,
                    source=Rank(number=chunk.source, of=chunks.prefill_ranks),
                    target=self.rank,
                )
        assert chunks.aux == b"token"
        return firsts

    def check(self):
        """What it holds now is its share of the whole, cut directly."""
        for name, part in self.model.items():
            for pool, full in zip(self.pools[name], FULL[name], strict=True):
                wanted = shard(full[list(part.taken)], part.split, rank=self.rank)
                assert torch.equal(pool[list(part.put)], wanted), name


@dataclasses.dataclass
class Sides:
    source: LocalAgent
    target: LocalAgent
    ps: list[EngineRank]
    ds: list[EngineRank]

    @property
    def peer(self):
        return f"127.0.0.1:{self.source.control_port}"


@contextlib.contextmanager
def sides(folder, model, *, prefill, decode, nodes=1):
    """Agents of so many ranks each, with an engine on every rank; prefill's in so many pods."""
    with contextlib.ExitStack() as stack:
        limits = {"default": 10, "stages": {"queue": 2, "bootstrap": 5}}
        local = prefill // nodes
        pods = [
            stack.enter_context(
                LocalAgent(
                    folder / f"p{node}",
                    role="prefill",
                    pod=f"prefill-{node}",
                    group="g",
                    node=node,
                    ranks=local,
                    timeouts=limits,
                )
            )
            for node in range(nodes)
        ]
        source = pods[0]
        peers = [f"127.0.0.1:{pod.control_port}" for pod in pods]
        target = stack.enter_context(
            LocalAgent(folder / "d", role="decode", ranks=decode, peers=peers, timeouts=limits)
        )
        ps = [EngineRank(pods[n // local], "prefill", model, n, prefill) for n in range(prefill)]
        ds = [EngineRank(target, "decode", model, n, decode) for n in range(decode)]
        for engine in (*ps, *ds):
            stack.callback(engine.client.close)
        yield Sides(source, target, ps, ds)


def check_whole(both, room, kit):
    kit.until(lambda: both.target.report().ready)
    for engine in both.ps:
        engine.offer(room)
    for engine in both.ds:
        engine.take(room, both.peer)
        engine.check()
    for engine in both.ps:
        engine.client.wait_released(room, 5)
    check_empty(both, kit)


def check_empty(both, kit):
    for agent in (both.source, both.target):
        kit.until(lambda agent=agent: agent.report().arena.used == 0)
        kit.until(lambda agent=agent: not agent.report().inflight)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Two prefill ranks for one of decode."""
    with sides(tmp_path_factory.mktemp("merged"), MODEL, prefill=2, decode=1) as both:
        yield both


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One prefill rank for two of decode."""
    with sides(tmp_path_factory.mktemp("shared"), MODEL, prefill=1, decode=2) as both:
        yield both


@pytest.mark.parametrize(("prefill", "decode", "model"), [(2, 4, MODEL), (4, 4, WITH_SWA)])
def test_every_rank_gets_its_share_of_the_whole_state(tmp_path, rooms, kit, prefill, decode, model):
    with sides(tmp_path, model, prefill=prefill, decode=decode) as both:
        check_whole(both, next(rooms), kit)


def test_one_rank_gets_the_whole_state_of_two(merged, rooms, kit):
    check_whole(merged, next(rooms), kit)


def test_two_ranks_share_the_state_of_one(shared, rooms, kit):
    check_whole(shared, next(rooms), kit)


def test_the_sources_of_a_rank_may_be_in_several_pods_of_a_group(tmp_path, rooms, kit):
    with sides(tmp_path, MODEL, prefill=2, decode=1, nodes=2) as both:
        check_whole(both, next(rooms), kit)


def test_prefill_need_not_gather_what_every_reader_has(shared, rooms, kit):
    kit.until(lambda: shared.target.report().ready)
    room, (p,) = next(rooms), shared.ps
    p.client.begin(room)
    assert p.client.wanted(room) == {}
    held = ({"kv": 2, "nsa": 3}, {"kv": 1})
    first = kit.in_thread(shared.ds[0].take, room, shared.peer, have=held[0])
    kit.until(lambda: shared.source.transfers()[0]["peer_pod"])
    assert p.client.wanted(room) == {}  # the other may have nothing
    second = kit.in_thread(shared.ds[1].take, room, shared.peer, have=held[1])
    have = kit.until(lambda: p.client.wanted(room))
    assert have == {"kv": 1}
    p.offer(room, begin=False, have=have)
    assert {("kv", 1, 1)} <= first.result(5)
    assert not {name for name, _, _ in first.result(5)} & {"nsa"}
    assert {("kv", 1, 0), ("nsa", 0, 0)} <= second.result(5)
    p.client.wait_released(room, 5)


def test_chunks_come_before_the_slowest_source_has_begun(merged, rooms, kit):
    kit.until(lambda: merged.target.report().ready)
    room = next(rooms)
    merged.ps[1].offer(room)
    with merged.ds[0].stream(room, merged.peer) as chunks:
        first = next(chunks)
        merged.ps[0].offer(room)
        came = {(first.component, first.source), *((c.component, c.source) for c in chunks)}
    assert first.source == 1
    assert {source for name, source in came if name == "kv"} == {0, 1}
    assert {source for name, source in came if name == "nsa"} == {0}  # both hold the same
    for engine in merged.ps:
        engine.client.wait_released(room, 5)


def test_one_source_that_fails_fails_the_request_and_tells_the_others(merged, rooms, kit):
    kit.until(lambda: merged.target.report().ready)
    room, (first, second) = next(rooms), merged.ps
    first.offer(room)
    second.client.begin(room)
    pulled = kit.in_thread(merged.ds[0].take, room, merged.peer)
    # Three processes and a fresh pair: a machine at load 20 has taken over 10 s for it.
    kit.until(lambda: "pulled" in str(merged.source.transfers()), within_s=30)
    second.client.abort(room, "out of memory")
    with pytest.raises(TransferFailed, match=r"Aborted.*out of memory"):
        pulled.result(5)
    with pytest.raises(TransferFailed, match=r"Aborted.*out of memory"):
        first.client.wait_released(room, 5)
    kv = next(row for row in merged.target.report().state_types if row.type == "kv")
    assert (kv.last_failure.room, kv.last_failure.detail) == (room, "out of memory")
    check_empty(merged, kit)


def test_one_reader_that_gives_up_fails_the_shard_for_every_reader(shared, rooms, kit):
    kit.until(lambda: shared.target.report().ready)
    room, (p,) = next(rooms), shared.ps
    p.client.begin(room)
    pulled = [kit.in_thread(d.take, room, shared.peer) for d in shared.ds]
    kit.until(lambda: [row["state"] for row in shared.target.transfers()] == ["PULLING(queue)"] * 2)
    shared.ds[1].client.cancel(room, "the client is gone")
    for future in pulled:
        with pytest.raises(TransferFailed, match=r"Aborted.*the client is gone"):
            future.result(5)
    with pytest.raises(TransferFailed, match=r"Aborted.*the client is gone"):
        p.client.wait_released(room, 5)


def test_a_reader_that_never_comes_is_counted_and_the_shard_is_freed(shared, rooms, kit):
    kit.until(lambda: shared.target.report().ready)
    room, (p,) = next(rooms), shared.ps
    p.offer(room)
    shared.ds[0].take(room, shared.peer)
    assert shared.source.report().arena.used > 0
    told = "1 of the 2 decode ranks that read it claimed the room, no other within 2 s"
    with pytest.raises(TransferFailed, match=told):
        p.client.wait_released(room, 10)
    assert shared.source.report().arena.used == 0
    with pytest.raises(TransferFailed, match=told):  # too late, and told why
        shared.ds[1].take(room, shared.peer)


def test_a_refusal_by_one_reader_reaches_prefill_though_another_has_claimed(shared, rooms, kit):
    kit.until(lambda: shared.target.report().ready)
    room, (p,) = next(rooms), shared.ps
    p.offer(room)
    shared.ds[0].take(room, shared.peer)
    shared.ds[1].client.refuse(room, detail="too many requests", peer=shared.peer)
    with pytest.raises(TransferFailed, match="too many requests"):
        p.client.wait_released(room, 5)


def test_a_type_that_cannot_be_resharded_is_refused_by_name_before_any_request(
    tmp_path, rooms, kit
):
    with sides(tmp_path, WITH_SWA, prefill=2, decode=1) as both:
        (told,) = kit.until(lambda: both.target.report().layout_mismatch)
        assert told.field.startswith("components[swa].ranks (state type 'swa' cannot go from")
        assert "sglang#38552" in told.field
        assert (told.prefill, told.decode) == ("2", "1")
        assert both.target.report().not_ready_reason == "LayoutMismatch"
        with pytest.raises(TransferFailed, match=r"LayoutMismatch.*sglang#38552"):
            both.ds[0].take(next(rooms), both.peer)
