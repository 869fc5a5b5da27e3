"""The engine's standing with its pod's agent: registered, or trying again.

An agent that restarts has a new arena; every view of the old one is void, the requests on it have
failed, and the engine registers anew. Until then it is not healthy and takes no request.
"""

import logging
import threading
from collections.abc import Sequence

from disagg_engine.errors import NotServingError
from disagg_engine.layout import ComponentLayout
from disagg_engine.refusals import Refusals
from disagg_engine.settings import Settings
from disagg_transfer.client import (
    AgentClient,
    AgentUnavailableError,
    Component,
    RegistrationError,
)

# One try. The wait as a whole has no end; a short try lets the engine stop soon.
CONNECT_S = 1.0
REFUSED_PAUSE_S = 2.0
log = logging.getLogger(__name__)


def to_component(layout: ComponentLayout) -> Component:
    return Component(
        name=layout.name,
        state_type=layout.state_type,
        item_bytes=layout.item_bytes,
        layers=layout.layers,
        dtype=layout.dtype,
        page_size=layout.page_size,
    )


class AgentSession:
    def __init__(
        self, settings: Settings, layouts: Sequence[ComponentLayout], refusals: Refusals
    ) -> None:
        self._settings, self._refusals = settings, refusals
        self._components = [to_component(layout) for layout in layouts]
        self._client: AgentClient | None = None
        self._reason = f"no agent on {settings.socket} yet"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="agent-session", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        client = self._client
        if client is not None:
            client.close()
        self._thread.join(CONNECT_S + REFUSED_PAUSE_S)

    @property
    def trouble(self) -> str | None:
        """Why no request can be taken now; None when registered."""
        client = self._client
        return None if client is not None and not client.lost.is_set() else self._reason

    def client(self) -> AgentClient:
        client = self._client
        if client is None or client.lost.is_set():
            raise NotServingError(f"not registered with the transfer agent: {self._reason}")
        return client

    def tell_refusals(self) -> None:
        """Now if registered; else registering does it."""
        client = self._client
        if client is not None:
            self._refusals.tell(client)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            client = self._register()
            if client is None:
                continue
            self._client = client
            log.info("registered with the agent on %s", self._settings.socket)
            self._refusals.tell(client)
            client.lost.wait()
            self._reason = "the agent's socket was closed; registering again"
            self._client = None
            client.close()

    def _register(self) -> AgentClient | None:
        try:
            return AgentClient.connect(
                self._settings.socket,
                role=self._settings.role,
                model=self._settings.model_id,
                components=self._components,
                page_size=self._settings.page_size,
                timeout_s=CONNECT_S,
            )
        except AgentUnavailableError as error:
            self._explain(str(error))
        except RegistrationError as error:
            self._explain(f"the agent refuses this engine: {error}")
            self._stopping.wait(REFUSED_PAUSE_S)
        return None

    def _explain(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("not registered: %s", reason)
        self._reason = reason
