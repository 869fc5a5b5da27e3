"""`disagg-agent serve`, and what a human asks with kubectl exec."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from disagg_transfer import contract
from disagg_transfer.errors import DeviceError, FabricError, SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    words = _parser().parse_args(argv)
    if words.command == "serve":
        return _serve()
    return _ask(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-agent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the agent; every setting is an environment variable")
    commands.add_parser("status", help="the report as JSON")
    commands.add_parser("peers", help="one line per peer")
    commands.add_parser("transfers", help="one line per request in flight")
    fault = commands.add_parser("fault", help="test switch; refused unless it is enabled")
    fault.add_argument(
        "words", nargs="+", metavar="withhold TYPE | duplicate TYPE | zero TYPE | lift"
    )
    return parser


def _serve() -> int:
    from disagg_transfer.agent.core import Agent
    from disagg_transfer.settings import from_environment

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        settings = from_environment(os.environ)
        asyncio.run(_until_signal(Agent(settings).run()))
    except (SettingsError, DeviceError, FabricError) as error:
        print(f"disagg-agent: {error}", file=sys.stderr)
        return 2
    return 0


async def _until_signal(work: Any) -> None:
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _ask(words: argparse.Namespace) -> int:
    path = Path(os.environ.get(contract.ENV_SOCKET, contract.SOCKET_PATH)).with_name("admin.sock")
    asked = ["fault", *words.words] if words.command == "fault" else [words.command]
    if words.command in ("status", "peers"):
        asked = ["report"]
    try:
        answer = ask(path, asked)
    except OSError as error:
        print(f"disagg-agent: no agent answers on {path}: {error.strerror}", file=sys.stderr)
        return 1
    if "error" in answer:
        print(f"disagg-agent: {answer['error']}", file=sys.stderr)
        return 1
    _show(words.command, answer)
    return 0


def ask(path: Path, words: Sequence[str]) -> Any:
    """One question to a running agent's admin socket."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(str(path))
        plain.sendall(json.dumps(list(words)).encode() + b"\n")
        with plain.makefile("rb") as lines:
            return json.loads(lines.readline())


def _show(command: str, answer: dict[str, Any]) -> None:
    if command == "peers":
        for peer in answer["report"]["peers"]:
            print(f"{peer['pod']}\t{peer['state']}\t{peer['detail']}")
    elif command == "transfers":
        for row in answer["transfers"]:
            print(
                f"{row['room']}\t{row['state']}\t{row['peer_pod']}\t"
                f"{row['age_s']:.3f} s\t{row['components']}"
            )
    else:
        print(json.dumps(answer.get("report", answer), indent=2))


if __name__ == "__main__":
    sys.exit(main())
