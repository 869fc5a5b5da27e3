"""The socket behind `disagg-agent status|peers|transfers|probe|fault`: a JSON line in, one out."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from disagg_transfer.agent.engine import Desk
from disagg_transfer.agent.engine_socket import bind_private, same_user
from disagg_transfer.agent.faults import Faults
from disagg_transfer.agent.outcomes import Changes
from disagg_transfer.agent.ports import serve, spawning
from disagg_transfer.agent.preflight import Preflight
from disagg_transfer.agent.samples import Samples
from disagg_transfer.contract import Report
from disagg_transfer.errors import SettingsError, UnknownStateTypeError
from disagg_transfer.strict_json import parse_json, to_json

LINE_S: Final = 10.0


def parse_line(line: bytes) -> list[str]:
    """The words of one question; ValueError if it is none."""
    words = parse_json(line)
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ValueError("a question is a list of words")
    return words


class Admin:
    def __init__(
        self,
        *,
        report: Callable[[], Report],
        ports: Callable[[], dict[str, int]],
        desks: Callable[[], Mapping[int, Desk]],  # by rank
        faults: Faults,
        changes: Changes,
        refused: Callable[[str], None],
        sampling: Samples | Preflight,
    ) -> None:
        self._sampling = sampling
        self._refused = refused
        self._report, self._ports = report, ports
        self._desks, self._faults, self._changes = desks, faults, changes

    async def run(self, path: Path) -> None:
        sock = bind_private(path)
        await serve(await asyncio.start_unix_server(spawning(self._accept), sock=sock))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not same_user(writer.transport):
                self._refused("user")
            else:
                async with asyncio.timeout(LINE_S):
                    words = parse_line(await reader.readline())
                writer.write(json.dumps(await self._answer(words)).encode() + b"\n")
                await writer.drain()
        except TimeoutError:
            self._refused("timeout")
            writer.write(b'{"error": "no line came"}\n')
        except (ValueError, OSError) as error:
            self._refused("protocol")
            writer.write(json.dumps({"error": str(error)}).encode() + b"\n")
        finally:
            writer.close()

    async def _answer(self, words: list[str]) -> dict[str, Any]:
        match words:
            case ["report"]:
                return {"report": json.loads(self._report().to_json()), "ports": self._ports()}
            case ["transfers"]:
                return {"transfers": self._transfers()}
            case ["probe", *pods] if len(pods) <= 1:
                return await self._probe(*pods)
            case ["fault", *arguments]:
                return self._fault(arguments)
        return {"error": f"unknown command {words!r}"}

    def _transfers(self) -> list[dict[str, Any]]:
        return [
            {"rank": rank, **asdict(sight)}
            for rank, desk in self._desks().items()
            for sight in desk.sights
        ]

    async def _probe(self, pod: str | None = None) -> dict[str, Any]:
        if not isinstance(self._sampling, Preflight):
            return {"error": "this is a prefill agent: decode pulls; run probe in a decode pod"}
        rows = await self._sampling.probe(pod)
        if not rows:
            known = ", ".join(row.pod for row in self._report().peers) or "none"
            return {
                "error": f"no prefill pod {pod or ''} to pull from: its agent must be connected, "
                f"with an engine of the same layout; peers: {known} (see disagg-agent peers)"
            }
        return {"probes": json.loads(to_json(rows))}

    def _fault(self, arguments: list[str]) -> dict[str, Any]:
        try:
            match arguments:
                case ["lift"]:
                    self._faults.lift()
                case [str(kind), str(state_type)]:
                    self._faults.set(kind, state_type)
                case _:
                    return {"error": "fault withhold|duplicate|zero TYPE | fault lift"}
        except (SettingsError, UnknownStateTypeError) as error:
            return {"error": str(error)}
        self._changes.touch()
        return {"faults": list(self._faults.described)}
