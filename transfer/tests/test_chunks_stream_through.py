"""Requests in chunks: decode takes each as it lands, and has nothing until it has all."""

import contextlib
import os

import pytest

from disagg_transfer.client import ArenaFull, TransferFailed

KV = 4096  # bytes of an item


def offer_part(pair, room, name, data, first, items, *, final, last=False, aux=b""):
    """Items [first, first + items) of a component whose bytes are `data`, in item order."""
    size = next(part.item_bytes for part in pair.parts if part.name == name)
    extent = pair.p.reserve(room, items * size, timeout_s=5)
    extent.view[:] = data[first * size : (first + items) * size]
    pair.p.offer(room, name, extent, items=items, first=first, final=final, last=last, aux=aux)


def offer_rest(pair, room, payloads, *, but=("kv",)):
    names = [name for name in payloads if name not in but]
    for name in names:
        last = name == names[-1]
        items = pair.items[name]
        offer_part(pair, room, name, payloads[name], 0, items, final=True, last=last, aux=b"tok")


def offer_in_chunks(pair, room, payloads, items, *, at_once=1):
    """Every component in chunks of so many items."""
    pair.p.begin(room)
    names = list(payloads)
    for name in names:
        total = items[name]
        for first in range(0, max(total, 1), at_once):
            count = min(at_once, total - first)
            final = first + count >= total
            last = final and name == names[-1]
            aux = b"tok" if last else b""
            offer_part(
                pair, room, name, payloads[name], first, count, final=final, last=last, aux=aux
            )


def taken_by(chunks, parts, items):
    """What an engine that scatters each chunk ends up with."""
    sizes = {part.name: part.item_bytes for part in parts}
    memory = {name: bytearray(count * sizes[name]) for name, count in items.items()}
    for chunk in chunks:
        start = chunk.first * sizes[chunk.component]
        memory[chunk.component][start : start + len(chunk.view)] = chunk.view
    return {name: bytes(data) for name, data in memory.items()}


def take(pair, room, items, **kwargs):
    with pair.d.stream(room, peer=pair.peer, expect=items, **kwargs) as chunks:
        taken = taken_by(chunks, pair.parts, items)
        assert (chunks.aux, chunks.prefill_pod) == (b"tok", "prefill")
    return taken


def test_chunks_arrive_byte_for_byte_in_whatever_size_they_are_cut(pair, rooms, kit):
    items = {**pair.items, "kv": 7, "nsa": 5, "none": 0}
    for at_once in (1, 2, 3, 7):
        room, payloads = next(rooms), pair.payloads(items)
        offering = kit.in_thread(offer_in_chunks, pair, room, payloads, items, at_once=at_once)
        assert take(pair, room, items) == payloads
        offering.result(5)
        pair.p.wait_released(room, 5)


def test_decode_has_the_first_chunk_before_prefill_offers_the_second(pair, rooms):
    room, payloads = next(rooms), pair.payloads()
    pair.p.begin(room)
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as chunks:
        offer_part(pair, room, "kv", payloads["kv"], 0, 1, final=False)
        one = next(chunks)
        assert (one.component, one.first, one.items) == ("kv", 0, 1)
        assert bytes(one.view) == payloads["kv"][:KV]
        offer_part(pair, room, "kv", payloads["kv"], 1, 2, final=True)
        two = next(chunks)
        assert (two.first, bytes(two.view)) == (1, payloads["kv"][KV:])
        offer_rest(pair, room, payloads)
        rest = taken_by(chunks, pair.parts, pair.items)
    assert rest == {**payloads, "kv": bytes(len(payloads["kv"]))}
    pair.p.wait_released(room, 5)


def test_prefill_has_its_memory_back_as_soon_as_a_chunk_is_pulled(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pair.p.begin(room)
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as chunks:
        offer_part(pair, room, "kv", payloads["kv"], 0, 1, final=False)
        next(chunks)
        kit.until(lambda: pair.prefill.report().arena.used == 0)
        pair.p.abort(room, "gone")
        with pytest.raises(TransferFailed, match="gone"):
            next(chunks)


def test_leading_items_that_decode_has_do_not_move(pair, rooms, kit):
    items = {**pair.items, "kv": 6}
    room, payloads = next(rooms), pair.payloads(items)
    pair.p.begin(room)
    before = moved_bytes(pair, "kv")
    stream = pair.d.stream(room, peer=pair.peer, expect=items, have={"kv": 4, "nsa": 3})
    with stream as chunks:
        kit.until(lambda: pair.leased(room))
        assert pair.p.wanted(room) == {"kv": 4, "nsa": 3}
        offer_part(pair, room, "kv", payloads["kv"], 4, 2, final=True)
        offer_rest(pair, room, payloads, but=("kv", "nsa"))
        taken = taken_by(chunks, pair.parts, items)
    assert taken["kv"] == bytes(4 * KV) + payloads["kv"][4 * KV :]
    assert taken["nsa"] == bytes(len(payloads["nsa"]))
    assert taken["mamba.conv"] == payloads["mamba.conv"]
    pair.p.wait_released(room, 5)
    assert moved_bytes(pair, "kv") - before == 2 * KV


def test_chunks_offered_before_prefill_knew_are_skipped_or_come_astride(pair, rooms):
    items = {**pair.items, "kv": 6}
    room, payloads = next(rooms), pair.payloads(items)
    pair.p.begin(room)
    assert pair.p.wanted(room) == {}
    offer_part(pair, room, "kv", payloads["kv"], 0, 2, final=False)
    offer_part(pair, room, "kv", payloads["kv"], 2, 3, final=False)
    offer_part(pair, room, "kv", payloads["kv"], 5, 1, final=True)
    offer_rest(pair, room, payloads)
    with pair.d.stream(room, peer=pair.peer, expect=items, have={"kv": 3}) as chunks:
        seen = {(c.first, c.items, c.skip) for c in chunks if c.component == "kv"}
    assert seen == {(2, 3, 1), (5, 1, 0)}
    pair.p.wait_released(room, 5)


def moved_bytes(pair, state_type):
    return next(r for r in pair.decode.report().state_types if r.type == state_type).bytes


def test_no_rows_on_both_sides_is_a_request_like_any_other(pair, rooms):
    items = {**pair.items, "swa": 0}
    room, payloads = next(rooms), pair.payloads(items)
    offer_in_chunks(pair, room, payloads, items, at_once=3)
    assert take(pair, room, items) == payloads
    pair.p.wait_released(room, 5)


@pytest.mark.parametrize(
    ("sent", "expected", "cause"), [(0, 1, "ShortPayload"), (1, 0, "LongPayload")]
)
def test_no_rows_on_one_side_only_is_a_failure(pair, rooms, sent, expected, cause):
    room = next(rooms)
    items = {**pair.items, "swa": sent}
    offer_in_chunks(pair, room, pair.payloads(items), items, at_once=3)
    with pytest.raises(TransferFailed) as caught:
        take(pair, room, {**pair.items, "swa": expected})
    assert (caught.value.cause, caught.value.component) == (cause, "swa")
    with pytest.raises(TransferFailed, match=cause):
        pair.p.wait_released(room, 5)


def test_a_failure_after_some_chunks_fails_the_request(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pair.p.begin(room)
    pair.prefill.fault("zero", "mamba")
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as chunks:
        offer_part(pair, room, "kv", payloads["kv"], 0, 3, final=True)
        next(chunks)
        with contextlib.suppress(TransferFailed):  # it may hear of it before its last offer
            offer_rest(pair, room, payloads)
        with pytest.raises(TransferFailed) as caught:
            list(chunks)
    assert (caught.value.cause, caught.value.state_type) == ("DigestMismatch", "mamba")
    with pytest.raises(TransferFailed, match="DigestMismatch"):
        pair.p.wait_released(room, 1)
    assert pair.decode.report().arena.used == 0


def test_leaving_a_stream_early_tells_prefill_and_frees_its_memory(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pair.p.begin(room)
    with pair.d.stream(room, peer=pair.peer, expect=pair.items) as chunks:
        offer_part(pair, room, "kv", payloads["kv"], 0, 3, final=True)
        next(chunks)
    with pytest.raises(TransferFailed, match=r"Aborted.*left before its last chunk"):
        pair.p.wait_released(room, 1)
    kit.until(lambda: pair.decode.report().arena.used == 0)


def test_an_offer_after_a_failure_is_told_by_the_next_call(pair, rooms, kit):
    room, payloads = next(rooms), pair.payloads()
    pair.p.begin(room)

    def run_out_of_pages():
        with pair.d.stream(room, peer=pair.peer, expect=pair.items):
            kit.until(lambda: pair.leased(room))
            raise ValueError("no page")

    with pytest.raises(ValueError, match="no page"):
        run_out_of_pages()
    kit.until(lambda: "FAILED" in pair.prefill.transfers()[0]["state"])
    for call in (
        lambda: offer_part(pair, room, "kv", payloads["kv"], 0, 3, final=True),
        lambda: pair.p.wanted(room),
        lambda: pair.p.wait_released(room, 1),
    ):
        with pytest.raises(TransferFailed, match=r"Aborted.*no page"):
            call()


def test_a_misuse_is_raised_where_it_happens(pair, rooms):
    room = next(rooms)
    pair.p.begin(room)
    one, other = pair.p.reserve_all(room, (KV, KV), timeout_s=1)

    def offer(extent, component="kv", **fields):
        fields = {"items": 1, "final": False, "last": False, **fields}
        pair.p.offer(room, component, extent, **fields)

    for wrong, told in (
        ({"first": 1}, "a chunk from item 1, where item 0 is next"),
        ({"items": 0}, "LongPayload"),
        ({"items": 2}, "ShortPayload"),
        ({"component": "conv"}, "'conv' is not registered; registered: kv, mamba.conv"),
    ):
        with pytest.raises(TransferFailed, match=told):
            offer(one, **wrong)
    offer(one)
    with pytest.raises(TransferFailed, match="is not one that room"):
        offer(one, first=1)
    offer(other, first=1, final=True, last=True)
    with pytest.raises(TransferFailed, match=r"has not begun|after the last offer|not one that"):
        offer(other, first=2)
    pair.p.abort(room, "done")
    with pytest.raises(TransferFailed, match="has not begun, or has ended"):
        offer(other)


def test_a_room_cancelled_by_another_thread_fails_the_one_at_work(pair, rooms, kit):
    room = next(rooms)
    pair.p.begin(room)
    extent = pair.p.reserve(room, 3 * KV, timeout_s=1)
    pulled = kit.in_thread(take, pair, room, pair.items)
    kit.until(lambda: pair.leased(room))
    pair.p.cancel(room, "the client has gone")
    with pytest.raises(TransferFailed, match=r"Aborted.*the client has gone"):
        pulled.result(2)
    # The thread at work may be writing still: its extent is not handed out.
    assert pair.prefill.report().arena.used >= extent.nbytes
    with pytest.raises(TransferFailed, match="the client has gone"):
        pair.p.wait_released(room, 1)
    assert pair.prefill.report().arena.used == 0


def test_memory_may_come_with_the_beginning(pair, rooms):
    room, payloads = next(rooms), pair.payloads()
    sizes = [len(data) for data in payloads.values()]
    extents = pair.p.begin(room, reserve=sizes)
    assert [extent.nbytes for extent in extents] == sizes
    for (name, data), extent in zip(payloads.items(), extents, strict=True):
        extent.view[:] = data
        last = name == list(payloads)[-1]
        aux = b"tok" if last else b""
        pair.p.offer(room, name, extent, items=pair.items[name], last=last, aux=aux)
    assert take(pair, room, pair.items) == payloads
    pair.p.wait_released(room, 5)


def test_memory_that_is_not_free_does_not_come_with_the_beginning(pair, rooms):
    for size in (1 << 30, 40 << 20):
        one, other = next(rooms), next(rooms)
        pair.p.begin(one, reserve=(40 << 20,))
        assert pair.p.begin(other, reserve=(size,)) == ()
        pair.p.abort(one, "done")
        assert pair.p.reserve(other, 4096, timeout_s=1).nbytes == 4096
        pair.p.abort(other, "done")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory, kit):
    """Arenas of two chunks."""
    parts = (kit.part("kv", item_bytes=1 << 20),)
    folder = tmp_path_factory.mktemp("narrow")
    with kit.agents(folder, parts=parts, both={"arena_bytes": 2 << 20}) as pair:
        yield pair


def test_requests_larger_than_the_arena_pass_through_it_side_by_side(narrow, rooms, kit):
    items = {"kv": 9}

    def journey(room):
        payloads = {"kv": os.urandom(9 << 20)}
        offering = kit.in_thread(offer_in_chunks, narrow, room, payloads, items)
        assert take(narrow, room, items) == payloads
        offering.result(10)
        narrow.p.wait_released(room, 10)

    for future in [kit.in_thread(journey, next(rooms)) for _ in range(4)]:
        future.result(60)
    for agent in (narrow.prefill, narrow.decode):
        assert agent.report().arena.used == 0


def test_a_chunk_larger_than_the_arena_says_what_to_raise(narrow, rooms):
    room = next(rooms)
    narrow.p.begin(room)
    with pytest.raises(ArenaFull, match=r"can never fit.*DISAGG_ARENA_BYTES"):
        narrow.p.reserve(room, 3 << 20, timeout_s=1)
    narrow.p.abort(room, "done")
