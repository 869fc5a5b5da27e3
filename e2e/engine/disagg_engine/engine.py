"""The engine as a whole: its model, its standing with the agent, the calls in flight."""

import asyncio
import logging
import threading
import uuid
from collections.abc import AsyncGenerator

from disagg_engine.errors import BadRequestError, NotServingError, OverloadedError
from disagg_engine.layout import ComponentLayout, probe_layout
from disagg_engine.models import LoadedModel, load_model
from disagg_engine.pools import PoolSet
from disagg_engine.refusals import Refusals
from disagg_engine.requests import Bootstrap, Request, check_length
from disagg_engine.roles import Call, DecodeRole, MonoRole, PrefillRole, RoleFlow
from disagg_engine.runner import ModelRunner
from disagg_engine.sampling import Token
from disagg_engine.session import AgentSession
from disagg_engine.settings import Settings
from disagg_transfer.client import TransferFailed
from disagg_transfer.contract import Cause

log = logging.getLogger(__name__)


class Engine:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.runner: ModelRunner | None = None
        self.flow: RoleFlow | None = None
        self._session: AgentSession | None = None
        self._refusals = Refusals(settings.role)
        self._in_flight = 0

    def load(self, model: LoadedModel | None = None) -> None:
        """Blocking: build or read the model, make the pools, start registering."""
        settings = self.settings
        loaded = model or load_model(settings.model, seed=settings.seed)
        runner = ModelRunner(loaded)
        layouts = probe_layout(loaded.module, page_size=settings.page_size)
        for each in layouts:
            log.info("component %s (%s): %d B", each.name, each.state_type, each.item_bytes)
        if settings.disaggregated:
            self._pair(runner, self._without_dropped(layouts))
        else:
            self.flow = MonoRole(runner)
        self.runner = runner

    def _pair(self, runner: ModelRunner, layouts: tuple[ComponentLayout, ...]) -> None:
        settings = self.settings
        pools = PoolSet(layouts, max_pages=settings.max_pages, max_slots=settings.max_slots)
        self._session = AgentSession(settings, layouts, self._refusals)
        if settings.fault_skip_transfer:
            log.warning("FAULT: requests are answered without their state")
            self.flow = MonoRole(runner)
        else:
            kind = PrefillRole if settings.role == "prefill" else DecodeRole
            self.flow = kind(runner, pools, self._session, settings)
        self._session.start()

    def _without_dropped(self, layouts: tuple[ComponentLayout, ...]) -> tuple[ComponentLayout, ...]:
        names = [layout.name for layout in layouts]
        dropped = self.settings.fault_drop_components
        for name in dropped:
            if name not in names:
                raise BadRequestError(
                    "--fault-drop-component", name, f"this model has {', '.join(names)}"
                )
            log.warning("FAULT: component %s is neither registered nor transferred", name)
        return tuple(layout for layout in layouts if layout.name not in dropped)

    def close(self) -> None:
        if self._session is not None:
            self._session.stop()

    @property
    def trouble(self) -> str | None:
        """Why no request can be taken; None when healthy."""
        if self.runner is None:
            return f"loading {self.settings.model}"
        return None if self._session is None else self._session.trouble

    def serving(self) -> ModelRunner:
        if self.runner is None or self.trouble is not None:
            raise NotServingError(self.trouble)
        return self.runner

    def admit(self, request: Request) -> Call:
        """Checks whatever can be checked before the call starts."""
        runner = self.serving()
        check_length(request, runner.model)
        self._flow().check_fits(request)
        if self._in_flight >= self.settings.max_requests:
            raise OverloadedError(
                f"{self._in_flight} requests are in flight, --max-requests is"
                f" {self.settings.max_requests}: retry later"
            )
        return Call(id=uuid.uuid4().hex, request=request)

    def refuse(self, bootstrap: Bootstrap | None, error: Exception) -> None:
        """The request ends before the agent knows of it; the peer's half is told, in time."""
        if bootstrap is None:
            return
        self._refusals.add(bootstrap, str(error))
        if self._session is not None:
            asyncio.get_running_loop().run_in_executor(None, self._session.tell_refusals)

    def limit(self, call: Call) -> int:
        """Tokens that this engine itself gives for the call."""
        return 1 if self.settings.role == "prefill" else call.request.sampling.max_new_tokens

    def _flow(self) -> RoleFlow:
        if self.flow is None:
            raise NotServingError(f"loading {self.settings.model}")
        return self.flow

    async def tokens(self, call: Call) -> AsyncGenerator[Token]:
        """Tokens as a thread of its own makes them; leaving early abandons the call."""
        flow, loop = self._flow(), asyncio.get_running_loop()
        events: asyncio.Queue[Token | Exception | None] = asyncio.Queue()

        def emit(event: Token | Exception | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def produce() -> None:
            try:
                for token in flow.tokens(call):
                    emit(token)
            except Exception as error:  # noqa: BLE001  (outermost: raised again in the handler)
                emit(error)
            else:
                emit(None)

        thread = threading.Thread(target=produce, name=f"call-{call.id}", daemon=True)
        self._in_flight += 1
        ended = False
        thread.start()
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, Exception):
                    ended = True
                    if _agent_was_away(event):
                        self.refuse(call.request.bootstrap, event)
                    raise event
                yield event
            ended = True
        finally:
            self._in_flight -= 1
            if not ended:
                loop.run_in_executor(None, _abandon, flow, call)


def _agent_was_away(error: Exception) -> bool:
    """Otherwise the agent has told the peer of the failure by itself."""
    lost = isinstance(error, TransferFailed) and error.cause is Cause.ENGINE_LOST
    return lost or isinstance(error, NotServingError)


def _abandon(flow: RoleFlow, call: Call) -> None:
    try:
        flow.abandon(call)
    except NotServingError:
        log.info("%s is abandoned while the agent is away", call.id)
