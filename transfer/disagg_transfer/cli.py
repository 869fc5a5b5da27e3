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
from typing import Any, Final

from disagg_transfer import contract, tables
from disagg_transfer.errors import DeviceError, FabricError, SettingsError

PROBE_S: Final = 600.0  # a first read over RDMA may take a minute, for each peer


def main(argv: Sequence[str] | None = None) -> int:
    words = _parser().parse_args(argv)
    if words.command == "serve":
        return _serve()
    return _ask(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-agent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="run the agent; every setting is an environment variable")
    asking = {
        "status": "how this agent is, and a row for each state type",
        "peers": "a row for each peer, with what preflight found of it",
        "transfers": "a row for each request in flight",
        "probe": "pull a sample from prefill pods now; exit status 1 if one fails",
        "fault": "test switch; refused unless it is enabled",
    }
    for name, text in asking.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("--json", action="store_true", help="print JSON, not a table")
        if name == "probe":
            command.add_argument("peer", nargs="?", metavar="PEER", help="one pod; default: all")
        if name == "fault":
            command.add_argument(
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
    try:
        answer = ask(path, _question(words), timeout_s=PROBE_S if words.command == "probe" else 10)
    except OSError as error:
        told = error.strerror or str(error)
        print(
            f"disagg-agent: no agent answers on {path}: {told}; run this in the container of a "
            f"running agent, or set {contract.ENV_SOCKET} to its engine socket",
            file=sys.stderr,
        )
        return 1
    if "error" in answer:
        print(f"disagg-agent: {answer['error']}", file=sys.stderr)
        return 1
    found = answer.get("report", answer)
    print(json.dumps(found, indent=2) if words.json else _table(words.command, answer))
    failed = [row for row in answer.get("probes", ()) if row["state"] != "passed"]
    return 1 if failed else 0


def _question(words: argparse.Namespace) -> list[str]:
    match words.command:
        case "fault":
            return ["fault", *words.words]
        case "probe":
            return ["probe", words.peer] if words.peer else ["probe"]
        case "transfers":
            return ["transfers"]
    return ["report"]


def ask(path: Path, words: Sequence[str], *, timeout_s: float = 10.0) -> Any:
    """One question to a running agent's admin socket; OSError when nobody answers."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(timeout_s)
        plain.connect(str(path))
        plain.sendall(json.dumps(list(words)).encode() + b"\n")
        with plain.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise ConnectionResetError("it closed the connection")
    return json.loads(line)


def _table(command: str, answer: dict[str, Any]) -> str:
    match command:
        case "status":
            return tables.status(answer["report"])
        case "peers":
            return tables.peers(answer["report"])
        case "transfers":
            return tables.transfers(answer["transfers"])
        case "probe":
            return tables.probes(answer["probes"])
    return "faults: " + (", ".join(answer["faults"]) or "none")


if __name__ == "__main__":
    sys.exit(main())
