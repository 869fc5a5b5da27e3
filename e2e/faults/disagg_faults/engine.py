"""An engine's process: `python -m disagg_faults.engine`. Orders come in by lines, outcomes go out.

It embeds the client as any engine does, registers again whenever its agent was lost, and carries
out every order in a thread of its own. What it says of a request is what the client told it, and
of the bytes what it saw.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

from disagg_faults.model import COMPONENTS, ITEM_BYTES, MODEL, PAGE_SIZE, content, cut
from disagg_faults.orders import Ending, Order, Outcome, read_order
from disagg_transfer.client import AgentClient, AgentUnavailableError, Chunk, TransferFailed
from disagg_transfer.contract import Cause

READY: Final = "ready"
_WAIT_S: Final = 30.0  # longer than any deadline of the agents, which are to end it first
_MEET_S: Final = 20.0
_RETRY_S: Final = 1.0


class _GivenUpError(Exception):
    """By this engine itself, as ordered."""


class Seat:
    """The engine's place at its agent, taken again when the agent was lost."""

    def __init__(self, socket_path: str, *, role: str) -> None:
        self._path, self._role = socket_path, role
        self._client: AgentClient | None = None
        self._taken = threading.Condition()

    def keep(self) -> None:
        """For ever."""
        while True:
            try:
                client = AgentClient.connect(
                    self._path,
                    role=self._role,
                    model=MODEL,
                    components=COMPONENTS,
                    page_size=PAGE_SIZE,
                    timeout_s=_RETRY_S,
                )
            except AgentUnavailableError:
                continue
            with self._taken:
                self._client = client
                self._taken.notify_all()
            client.lost.wait()
            with self._taken:
                self._client = None
            client.close()

    def client(self) -> AgentClient:
        with self._taken:
            if not self._taken.wait_for(lambda: self._client is not None, _MEET_S):
                raise AgentUnavailableError(f"not registered within {_MEET_S:g} s")
            assert self._client is not None
            return self._client


class Engine:
    def __init__(self, seat: Seat, *, seed: int) -> None:
        self._seat, self._seed = seat, seed
        self._lock = threading.Lock()
        self._contents: dict[tuple[int, str], bytes] = {}

    def run(self, line: str) -> None:
        order, began_at = read_order(line), time.monotonic()
        ending, cause, stage, detail = Ending.EXACT, "", "", ""
        try:
            client = self._seat.client()
            ending = self._pull(client, order) if order.peer else self._serve(client, order)
        except _GivenUpError:
            ending, cause = Ending.FAILED, Cause.ABORTED.value
        except TransferFailed as failure:
            ending, detail = Ending.FAILED, failure.detail
            cause, stage = failure.cause.value, failure.stage.value
        except AgentUnavailableError as error:
            ending, cause, detail = Ending.FAILED, "AgentUnavailable", str(error)
        self._forget(order)
        outcome = Outcome(
            room=order.room,
            ending=ending,
            cause=cause,
            stage=stage,
            detail=detail,
            began_at=began_at,
            ended_at=time.monotonic(),
        )
        self.say(outcome.to_line())

    def say(self, line: str) -> None:
        with self._lock:
            sys.stdout.write(line)
            sys.stdout.flush()

    def _serve(self, client: AgentClient, order: Order) -> Ending:
        client.begin(order.room)
        try:
            self._offer(client, order)
        except TransferFailed:
            client.abort(order.room, "an offer failed")  # no view of the room is touched again
            raise
        client.wait_released(order.room, _WAIT_S)
        return Ending.EXACT

    def _offer(self, client: AgentClient, order: Order) -> None:
        self._come(order)
        have = client.wanted(order.room) if order.asks else {}
        pieces = cut(order.items, chunk_bytes=order.chunk_bytes, have=have, room=order.room)
        for piece in pieces:
            payload = self._bytes(order, piece.component, piece.first, piece.items)
            extent = client.reserve(order.room, len(payload), timeout_s=_WAIT_S)
            extent.view[:] = payload
            client.offer(
                order.room,
                piece.component,
                extent,
                items=piece.items,
                first=piece.first,
                final=piece.final,
                last=piece is pieces[-1],
            )
            if order.abort:
                client.abort(order.room, "the campaign's engine gives up")
                raise _GivenUpError
            time.sleep(order.pace_s)

    def _pull(self, client: AgentClient, order: Order) -> Ending:
        self._come(order)
        take = self._take_whole if order.whole else self._take_stream
        return Ending.EXACT if take(client, order) else Ending.WRONG

    def _take_whole(self, client: AgentClient, order: Order) -> bool:
        arrival = client.pull(order.room, peer=order.peer, expect=order.items, have=order.have)
        chunks = [chunk for payload in arrival.payloads.values() for chunk in payload.chunks]
        exact = self._covers(order, chunks) and all(self._same(order, c) for c in chunks)
        client.release(order.room)  # raises where the bytes must not be used
        return exact

    def _take_stream(self, client: AgentClient, order: Order) -> bool:
        chunks: list[Chunk] = []
        exact = True
        with client.stream(
            order.room, peer=order.peer, expect=order.items, have=order.have
        ) as stream:
            for chunk in stream:
                if order.abort:
                    raise _GivenUpError
                if not chunks:
                    time.sleep(order.hold_s)
                exact &= self._same(order, chunk)
                chunks.append(chunk)
        return exact and self._covers(order, chunks)

    def _come(self, order: Order) -> None:
        """Late as ordered, with the bytes made by then: making them is no scattering."""
        due_at = time.monotonic() + order.lag_s
        for component in order.items:
            self._content(order, component)
        time.sleep(max(0.0, due_at - time.monotonic()))

    def _same(self, order: Order, chunk: Chunk) -> bool:
        return bool(chunk.view == self._bytes(order, chunk.component, chunk.first, chunk.items))

    @staticmethod
    def _covers(order: Order, chunks: Sequence[Chunk]) -> bool:
        """Whether every item above `have` came once; the agents' own accounts are not asked."""
        for name, total in order.items.items():
            came = sorted(
                item
                for chunk in chunks
                if chunk.component == name
                for item in range(chunk.first + chunk.skip, chunk.first + chunk.items)
            )
            if ITEM_BYTES[name] and came != list(range(order.have.get(name, 0), total)):
                return False
        return True

    def _bytes(self, order: Order, component: str, first: int, items: int) -> bytes:
        size = ITEM_BYTES[component]
        whole = self._content(order, component)
        return whole[first * size : (first + items) * size]

    def _content(self, order: Order, component: str) -> bytes:
        """Kept while the request is under way: a chunk is cut out of it."""
        key = (order.room, component)
        if key not in self._contents:
            self._contents[key] = content(
                seed=self._seed,
                room=order.room,
                component=component,
                items=order.items[component],
            )
        return self._contents[key]

    def _forget(self, order: Order) -> None:
        for component in order.items:
            self._contents.pop((order.room, component), None)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="disagg_faults.engine")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--role", required=True)
    parser.add_argument("--seed", type=int, required=True)
    words = parser.parse_args(argv)
    seat = Seat(words.socket, role=words.role)
    threading.Thread(target=seat.keep, daemon=True).start()
    engine = Engine(seat, seed=words.seed)
    seat.client()
    engine.say(READY + "\n")
    for line in sys.stdin:
        threading.Thread(target=engine.run, args=(line,), daemon=True).start()
    return 0


if __name__ == "__main__":
    sys.exit(main())
