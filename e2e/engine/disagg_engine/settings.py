"""The command line of the engine; what the operator sets by environment is the default."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_transfer import contract

ROLES = ("prefill", "decode", "mono")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    role: str
    model: str
    model_id: str  # what the agents compare: the same on both sides
    seed: int = 0
    host: str = "0.0.0.0"  # noqa: S104  (a pod's server is there for other pods)
    port: int = contract.ENGINE_PORT
    socket: str = contract.SOCKET_PATH
    bootstrap_port: int = contract.CONTROL_PORT
    page_size: int = 16
    max_pages: int = 2048
    max_slots: int = 64
    max_requests: int = 64
    chunk_bytes: int = 8 << 20  # gather, wire and scatter then work beside one another
    queue_timeout_s: float = 10.0
    release_timeout_s: float = 600.0
    fault_drop_components: tuple[str, ...] = ()
    fault_skip_transfer: bool = False

    @property
    def disaggregated(self) -> bool:
        return self.role != "mono"


def parse_settings(argv: Sequence[str] | None, env: Mapping[str, str] | None = None) -> Settings:
    env = os.environ if env is None else env
    given = vars(_parser(env).parse_args(argv))
    model_id = given.pop("model_id") or given["model"]
    dropped = tuple(given.pop("fault_drop_component"))
    return Settings(model_id=model_id, fault_drop_components=dropped, **given)


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-engine", description="Reference engine")
    add = parser.add_argument
    _add_model(add, env)
    _add_server(add, env)
    positive = _at_least(1)
    add("--page-size", type=positive, default=16, help="tokens per page")
    add("--max-pages", type=positive, default=2048, help="pages of each paged component")
    add("--max-slots", type=positive, default=64, help="slots of each recurrent state")
    add("--max-requests", type=positive, default=64, help="more at a time are refused (503)")
    add(
        "--chunk-bytes", type=positive, default=8 << 20, help="a component is offered in such parts"
    )
    add("--queue-timeout-s", type=float, default=10.0, help="wait for pages and for the arena")
    add("--release-timeout-s", type=float, default=600.0, help="last bound on decode's release")
    add(
        "--fault-drop-component",
        metavar="NAME",
        action="append",
        default=[],
        help="FAULT, for tests only: register without this component and never transfer it",
    )
    add(
        "--fault-skip-transfer",
        action="store_true",
        help="FAULT, for tests only: register, then answer without asking the agent for any state",
    )
    return parser


def _add_model(add: Any, env: Mapping[str, str]) -> None:
    role, model = env.get(contract.ENV_ROLE), env.get(contract.ENV_MODEL)
    add("--role", choices=ROLES, default=role, required=role is None)
    add("--model", default=model, required=model is None, help="a tiny model's name, or a folder")
    add("--model-id", default=model, help="what the agents compare (default: --model)")
    add("--seed", type=int, default=0, help="of a tiny model's weights")


def _add_server(add: Any, env: Mapping[str, str]) -> None:
    add("--host", default="0.0.0.0")  # noqa: S104
    add("--port", type=int, default=contract.ENGINE_PORT, help="0 picks a free one")
    add("--socket", default=env.get(contract.ENV_SOCKET, contract.SOCKET_PATH))
    add(
        "--bootstrap-port",
        type=int,
        default=int(env.get(contract.ENV_BOOTSTRAP_PORT, contract.CONTROL_PORT)),
        help="the agent's control port, told to routers that ask",
    )


def _at_least(low: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    return integer
