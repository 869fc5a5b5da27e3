"""A decode agent and a prefill peer that breaks the rules, each in its own way; real NIXL reads.

The peer is a fake on purpose: it holds the deployment's key and says what no agent of ours does.
"""

import asyncio
import os
import threading

import pytest
import xxhash
from msgspec.structs import replace

from disagg_transfer.agent.frames import accepting
from disagg_transfer.agent.session import fabric_name, receive
from disagg_transfer.arena import ArenaMemory
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import Role
from disagg_transfer.limits import Heartbeat
from disagg_transfer.local import LocalAgent
from disagg_transfer.nixl_fabric import Fabric
from disagg_transfer.protocol import (
    ComponentLayout,
    Failed,
    Fingerprint,
    Identity,
    Landed,
    Layout,
    Offer,
    Want,
)
from disagg_transfer.ucx import UcxSettings

US = Identity(
    namespace="local",
    deployment="local",
    revision="r1",
    role=Role.PREFILL,
    pod="forger",
    incarnation="1",
    group="0",
    node=0,
    ranks=1,
)
ITEM = 4096
SLOT = 8192
PARTS = (("kv", "kv", ITEM), ("ssm", "mamba", SLOT))
EPOCH = 7
EXPECT = {"kv": 4, "ssm": 1}


class ForgingPrefill:
    """Answers each Want with the offers of `forge`, and keeps what decode says of it."""

    def __init__(self):
        self.memory = ArenaMemory(1 << 20)
        self.memory.view[:] = os.urandom(1 << 20)
        self.fabric = Fabric(
            fabric_name(US, 0),
            base=self.memory.base,
            size=self.memory.size,
            ucx=UcxSettings(),
            passive=True,
        )
        self.forge = lambda offers: offers
        self.failures = []
        self.landed = 0
        self.port = 0
        self.listening = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    def __enter__(self):
        self.thread.start()
        assert self.listening.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(10)

    async def serve(self):
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        server = await self.loop.create_server(accepting(self.meet), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.listening.set()
        await self.stop.wait()
        server.close()

    async def meet(self, stream):
        connection = await receive(
            stream, us=US, keys=(b"local key for tests only",), heartbeat=Heartbeat()
        )
        connection.send(self.layout())
        await connection.run(self.on_message)

    def layout(self):
        components = tuple(
            ComponentLayout(
                name=name,
                state_type=kind,
                type_version=1,
                item_bytes=size,
                layers=2,
                dtype="float32",
                page_size=0 if kind == "mamba" else 16,
            )
            for name, kind, size in PARTS
        )
        return Layout(
            rank=0,
            epoch=EPOCH,
            fingerprint=Fingerprint(model="tiny", page_size=16, ranks=1, components=components),
            fabric_name=self.fabric.name,
            fabric_metadata=self.fabric.metadata,
            arena_base=self.memory.base,
            arena_bytes=self.memory.size,
        )

    def on_message(self, connection, pair, message):
        if isinstance(message, Want):
            for offer in self.forge(self.honest(message)):
                connection.send(offer, pair=pair)
        elif isinstance(message, Landed):
            self.landed += 1
        elif isinstance(message, Failed):
            self.failures.append(message)

    def honest(self, want):
        """kv in two chunks of two items, the slot in one."""
        kv = [
            self.chunk(want, "kv", 0, first=0, items=2),
            self.chunk(want, "kv", 1, first=2, items=2, final=True),
        ]
        last = self.chunk(want, "ssm", 0, first=0, items=1, size=SLOT, final=True)
        offers = [*kv, replace(last, last=True, aux=b"aux")]
        return [replace(offer, index=index) for index, offer in enumerate(offers)]

    def chunk(self, want, component, chunk, *, first, items, size=ITEM, final=False):
        offset = first * size
        data = self.memory.view[offset : offset + items * size]
        return Offer(
            room=want.room,
            request=want.request,
            epoch=want.epoch,
            index=0,
            last=False,
            component=component,
            chunk=chunk,
            first=first,
            items=items,
            final=final,
            offset=offset,
            nbytes=items * size,
            digest=xxhash.xxh3_128_digest(data),
            aux=b"",
        )


@pytest.fixture(scope="module")
def forger():
    with ForgingPrefill() as forger:
        yield forger


@pytest.fixture(scope="module")
def agent(forger, tmp_path_factory, kit):
    folder = tmp_path_factory.mktemp("forged")
    limits = {"default": 30, "stages": {"notify": 1.0, "queue": 1.0}}
    peers = [f"127.0.0.1:{forger.port}"]
    with LocalAgent(folder, role="decode", peers=peers, timeouts=limits) as agent:
        yield agent


@pytest.fixture
def take(forger, agent, kit, rooms):
    """Ask for a room whose offers are forged; nothing of it may stay behind."""
    parts = tuple(kit.part(kind, item_bytes=size, name=name) for name, kind, size in PARTS)
    client = kit.connect(agent, "decode", parts)
    kit.until(lambda: agent.report().ready)
    forger.failures.clear()
    forger.landed = 0

    def taken(forge, **kwargs):
        forger.forge = forge
        peer = f"127.0.0.1:{forger.port}"
        seen = {}
        with client.stream(next(rooms), peer=peer, expect=EXPECT, **kwargs) as chunks:
            for chunk in chunks:
                seen[chunk.component, chunk.first] = bytes(chunk.view)
        return seen

    yield taken
    kit.until(lambda: agent.report().arena.used == 0)  # reads given up end first
    client.close()


def whole(forger):
    view = bytes(forger.memory.view[: 4 * ITEM])
    return {("kv", 0): view[: 2 * ITEM], ("kv", 2): view[2 * ITEM :], ("ssm", 0): view[:SLOT]}


def changed(index, /, **fields):
    def forge(offers):
        return [replace(o, **fields) if o.index == index else o for o in offers]

    return forge


def added(index, /, **fields):
    """One more offer, made of that one, right after it."""

    def forge(offers):
        return [*offers[: index + 1], replace(offers[index], **fields), *offers[index + 1 :]]

    return forge


def without(index):
    def forge(offers):
        kept = [offer for offer in offers if offer.index != index]
        return [replace(offer, index=place) for place, offer in enumerate(kept)]

    return forge


def test_what_the_forger_says_when_it_is_honest_arrives(take, forger, kit):
    assert take(lambda offers: offers) == whole(forger)
    kit.until(lambda: forger.landed == 1)


def test_offers_may_come_in_any_order(take, forger):
    for order in ([2, 1, 0], [1, 0, 2], [2, 0, 1]):
        assert take(lambda offers, order=order: [offers[i] for i in order]) == whole(forger)


@pytest.mark.parametrize(
    ("forge", "cause", "told"),
    [
        (added(0), "DuplicatePayload", "is offered a second time, as offer 0"),
        (added(0, index=9), "DuplicatePayload", "chunk 0 of 2 items from 0"),
        (changed(1, first=1, items=3, nbytes=3 * ITEM), "OverlappingPayload", "items 1..3 offered"),
        (changed(1, first=3, items=1, nbytes=ITEM), "MissingState", "lack: items 2..2 of kv"),
        (changed(1, first=3, items=2), "LongPayload", "has 5 items or more, 4 are expected"),
        (changed(1, items=1, nbytes=ITEM), "ShortPayload", "has 3 items, 4 are expected"),
        (changed(1, nbytes=ITEM), "ShortPayload", "has 4096 bytes, 8192 are expected"),
        (changed(1, nbytes=3 * ITEM), "LongPayload", "has 12288 bytes, 8192 are expected"),
        (changed(1, final=False), "MissingState", "lack: the final chunk of kv"),
        (without(0), "MissingState", "lack: items 0..1 of kv"),
        (without(2), "Timeout", "no offer of component ssm"),
        (changed(1, component="conv"), "ExtraState", "expected: kv, ssm"),
        (added(2, index=3, last=False), "DuplicatePayload", "component ssm is offered a second"),
        (
            added(1, component="ssm", chunk=5, first=0, items=1, index=3),
            "ExtraState",
            "marked last",
        ),
        (changed(1, epoch=EPOCH - 1), "EpochMismatch", "offer of registration 6"),
        (changed(1, digest=bytes(16)), "DigestMismatch", "component kv, chunk 1"),
        (changed(1, digest=b""), "DigestMismatch", "the peer's is none"),
        (changed(1, offset=1 << 20), "ProtocolError", "is past 1048576"),
        (changed(1, offset=0), "DigestMismatch", "component kv, chunk 1"),
        (lambda offers: [], "Timeout", "has offered nothing of it"),
    ],
)
def test_each_way_to_forge_a_request_fails_it_by_its_own_cause(
    take, forger, kit, forge, cause, told
):
    with pytest.raises(TransferFailed) as caught:
        take(forge)
    assert caught.value.cause == cause
    assert told in caught.value.detail
    kit.until(lambda: forger.failures, within_s=1)
    assert [failure.cause for failure in forger.failures] == [cause]
    assert not forger.landed


def test_offers_of_an_earlier_claim_on_the_room_count_for_nothing(take, forger):
    """A replay: the right room, the request of somebody before."""

    def replayed(offers):
        return [*(replace(offer, request=bytes(16)) for offer in offers), *offers]

    assert take(replayed) == whole(forger)
    with pytest.raises(TransferFailed, match="Timeout in stage queue"):
        take(lambda offers: [replace(offer, request=bytes(16)) for offer in offers])


def test_a_chunk_offered_below_what_decode_has_is_not_fetched(take, forger):
    seen = take(lambda offers: offers, have={"kv": 2})
    assert seen == {place: data for place, data in whole(forger).items() if place != ("kv", 0)}
