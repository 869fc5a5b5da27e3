"""The keys by which agents of one deployment know one another, while they are replaced.

The key file holds one key, or two: the new one first, the old one still good. kubelet swaps the
file when the Secret changes, at another moment in every pod, so each agent reads it every second.
A session that began with a key outlives it if both sides have shown in it that they hold another
one of the file's; a session of withdrawn keys alone ends.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from disagg_transfer.agent.session import Connection
from disagg_transfer.contract import key_id
from disagg_transfer.errors import AuthenticationError, SettingsError
from disagg_transfer.settings import read_keys

REREAD_S: Final = 1.0
GRACE_S: Final = 5.0  # for a peer that reads its file a moment later

_log = logging.getLogger(__name__)


class KeyRing:
    def __init__(self, path: Path, keys: tuple[bytes, ...]) -> None:
        self._path = path
        self._keys = keys
        self._trouble = ""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Newest first."""
        return self._keys

    async def run(self, connections: Callable[[], Iterable[Connection]]) -> None:
        loop = asyncio.get_running_loop()
        doubted: dict[Connection, float] = {}
        while True:
            await asyncio.sleep(REREAD_S)
            self._reread()
            now = loop.time()
            doubted = {one: doubted.get(one, now) for one in connections() if not self._stands(one)}
            for connection, since in doubted.items():
                if now - since > GRACE_S:
                    connection.close(
                        "the key it began with is withdrawn, and it has shown no other"
                    )

    def _reread(self) -> None:
        try:
            keys = read_keys(self._path)
        except SettingsError as error:
            if str(error) != self._trouble:
                _log.error("the keys stay as they are: %s", error)
            self._trouble = str(error)
            return
        self._trouble = ""
        if keys != self._keys:
            self._keys = keys
            _log.info("%d keys now: %s", len(keys), ", ".join(key_id(k).hex() for k in keys))

    def _stands(self, connection: Connection) -> bool:
        named = {key_id(key): key for key in self._keys}
        for message in connection.bond.news(named):
            connection.send(message)
        try:
            return connection.bond.stands(named)
        except AuthenticationError as error:
            connection.close(f"a false proof: {error}")
            return True
