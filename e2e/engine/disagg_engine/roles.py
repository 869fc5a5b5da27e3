"""One request through this engine, by role. Each role yields tokens in a thread of its own."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from disagg_engine.errors import RequestAbandonedError
from disagg_engine.pools import Pages, PoolSet
from disagg_engine.requests import Bootstrap, Request
from disagg_engine.runner import ModelRunner
from disagg_engine.sampling import Token, pick_token
from disagg_engine.session import AgentSession
from disagg_engine.settings import Settings
from disagg_engine.transcribe import rebuild_cache, store_cache
from disagg_transfer.client import AgentClient, ChunkStream, TransferFailed
from disagg_transfer.contract import Cause, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request in flight, shared by its thread and the server."""

    id: str
    request: Request
    abandoned: threading.Event = field(default_factory=threading.Event)

    @property
    def bootstrap(self) -> Bootstrap:
        if self.request.bootstrap is None:
            raise ValueError("a prefill or decode call without bootstrap fields")
        return self.request.bootstrap

    def check(self) -> None:
        if self.abandoned.is_set():
            raise RequestAbandonedError(f"the client of {self.id} has gone")


class RoleFlow(Protocol):
    def check_fits(self, request: Request) -> None:
        """BadRequestError when no amount of waiting makes it fit."""

    def tokens(self, call: Call) -> Iterator[Token]: ...

    def abandon(self, call: Call) -> None:
        """Wake the call's thread wherever it waits; it then ends with an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """What prefill sends beside the payloads."""

    token: Token
    prompt_tokens: int

    def pack(self) -> bytes:
        return json.dumps([self.token.id, self.token.logprob, self.prompt_tokens]).encode()

    @classmethod
    def unpack(cls, aux: bytes) -> "FirstToken":
        """ValueError when it is not what `pack` makes."""
        match json.loads(aux):
            case [int(token), float(logprob), int(prompt_tokens)]:
                return cls(token=Token(id=token, logprob=logprob), prompt_tokens=prompt_tokens)
            case other:
                raise ValueError(f"expected [token, logprob, prompt_tokens], got {other!r}")


class MonoRole:
    """Both halves in this process."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def check_fits(self, request: Request) -> None:
        pass

    def tokens(self, call: Call) -> Iterator[Token]:
        sampling = call.request.sampling
        cache, logits = self._runner.prefill(call.request.prompt)
        first = pick_token(logits, sampling, position=0)
        yield from self._runner.continuation(first, cache, sampling, check=call.check)

    def abandon(self, call: Call) -> None:
        call.abandoned.set()


class PairedRole:
    """What prefill and decode have in common."""

    def __init__(
        self, runner: ModelRunner, pools: PoolSet, session: AgentSession, settings: Settings
    ) -> None:
        self._runner = runner
        self._pools = pools
        self._session = session
        self._settings = settings

    def check_fits(self, request: Request) -> None:
        self._pools.check_fits(len(request.prompt))

    def abandon(self, call: Call) -> None:
        call.abandoned.set()
        with suppress(TransferFailed):  # it ended by itself meanwhile
            self._session.client().cancel(call.bootstrap.room, "the client has gone")


class PrefillRole(PairedRole):
    """Run the prompt, gather every component into the arena, offer it, wait for decode."""

    def tokens(self, call: Call) -> Iterator[Token]:
        client, room = self._session.client(), call.bootstrap.room
        client.begin(room)
        with self._given_up_unless_done(client, call):
            first = self._hand_over(client, call)
            client.wait_released(room, self._settings.release_timeout_s)
        yield first

    @contextmanager
    def _given_up_unless_done(self, client: AgentClient, call: Call) -> Iterator[None]:
        """Whatever ends the block early, the peer is told at once."""
        try:
            yield
        except BaseException as error:
            reason = f"the {self._settings.role} engine gave up: {error}"
            with suppress(TransferFailed):
                client.abort(call.bootstrap.room, reason)
            raise

    def _hand_over(self, client: AgentClient, call: Call) -> Token:
        prompt = call.request.prompt
        with self._pools.hold(len(prompt), timeout_s=self._settings.queue_timeout_s) as pages:
            call.check()
            cache, logits = self._runner.prefill(prompt)
            first = pick_token(logits, call.request.sampling, position=0)
            store_cache(cache, self._pools, pages, prompt_tokens=len(prompt))
            aux = FirstToken(token=first, prompt_tokens=len(prompt)).pack()
            self._offer(client, call.bootstrap.room, pages, aux)
        return first

    def _offer(
        self, client: AgentClient, room: int, pages: Mapping[str, Pages], aux: bytes
    ) -> None:
        """The pages are free again as soon as they are gathered, long before decode has them."""
        last = self._pools.layouts[-1]
        for layout in self._pools.layouts:
            taken = pages[layout.name]
            for first, items in _chunks(len(taken), layout.item_bytes, self._settings.chunk_bytes):
                extent = client.reserve(
                    room, items * layout.item_bytes, timeout_s=self._settings.queue_timeout_s
                )
                self._pools[layout.name].gather(taken[first : first + items], extent.view)
                final = first + items == len(taken)
                is_last = final and layout is last
                client.offer(
                    room,
                    layout.name,
                    extent,
                    first=first,
                    items=items,
                    final=final,
                    last=is_last,
                    aux=aux if is_last else b"",
                )


def _chunks(items: int, item_bytes: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, items) of each chunk: at least one item, and of no items one empty chunk."""
    each = max(chunk_bytes // max(item_bytes, 1), 1)
    for first in range(0, max(items, 1), each):
        yield first, min(each, items - first)


class DecodeRole(PairedRole):
    """Scatter each chunk of the request's cache as it lands, go on where prefill stopped."""

    def tokens(self, call: Call) -> Iterator[Token]:
        first, cache = self._take_over(call)
        yield from self._runner.continuation(first, cache, call.request.sampling, check=call.check)

    def _take_over(self, call: Call) -> tuple[Token, Any]:
        prompt_tokens = len(call.request.prompt)
        stream = self._session.client().stream(
            call.bootstrap.room,
            peer=call.bootstrap.peer,
            expect={layout.name: layout.items(prompt_tokens) for layout in self._pools.layouts},
        )
        with ExitStack() as held:
            with stream as chunks:
                # Pages are taken when there is something to put there: prefill may queue long.
                first_chunk = next(chunks)
                call.check()
                timeout_s = self._settings.queue_timeout_s
                pages = held.enter_context(self._pools.hold(prompt_tokens, timeout_s=timeout_s))
                for chunk in chain((first_chunk,), chunks):
                    own = pages[chunk.component][chunk.first : chunk.first + chunk.items]
                    self._pools[chunk.component].scatter(own, chunk.view)
                first = _first_token(chunks, call, vocab_size=self._runner.model.vocab_size)
            # Released without an error: only now may the pages be used.
            config = self._runner.model.module.config
            return first, rebuild_cache(config, self._pools, pages, prompt_tokens=prompt_tokens)


def _first_token(chunks: ChunkStream, call: Call, *, vocab_size: int) -> Token:
    try:
        first = FirstToken.unpack(chunks.aux)
    except ValueError as error:
        raise _protocol_error(chunks, f"aux is not a first token: {error}") from error
    expected = len(call.request.prompt)
    if first.prompt_tokens != expected:
        raise _protocol_error(
            chunks, f"prefill ran {first.prompt_tokens} prompt tokens, decode has {expected}"
        )
    if not 0 <= first.token.id < vocab_size:
        raise _protocol_error(
            chunks, f"first token {first.token.id} is outside the vocabulary of {vocab_size}"
        )
    return first.token


def _protocol_error(chunks: ChunkStream, detail: str) -> TransferFailed:
    return TransferFailed(
        Cause.PROTOCOL_ERROR, stage=Stage.SCATTER, detail=detail, peer_pod=chunks.prefill_pod
    )
