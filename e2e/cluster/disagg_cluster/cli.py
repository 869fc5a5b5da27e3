"""disagg-cluster: the embedded cluster from the command line."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from disagg_cluster import cluster, processes
from disagg_cluster.addresses import DEFAULT_BASE_PORT, Ports, Settings
from disagg_cluster.binaries import CLUSTER, KWOK, ensure_binaries
from disagg_cluster.errors import ClusterError, MachineError
from disagg_cluster.images import Image, build_images, load_images
from disagg_cluster.layout import Layout, default_layout
from disagg_cluster.progress import say

Command = Callable[[argparse.Namespace, Layout], int]


def _up(options: argparse.Namespace, layout: Layout) -> int:
    settings = _settings(options, Settings.load(layout.settings), layout)
    started = cluster.up(layout, settings)
    if settings.with_node and not options.no_images:
        load_images(layout)
    say(f"up ({', '.join(started)} started)" if started else "already up")
    print(layout.admin_kubeconfig)
    return 0


def _settings(options: argparse.Namespace, known: Settings | None, layout: Layout) -> Settings:
    """What is asked for now, and where nothing is said, what the cluster was made as."""
    if known is None:
        return Settings(
            ports=_ports(options),
            with_node=not options.control_plane_only,
            kwok_nodes=options.kwok or 0,
        )
    if known.with_node == options.control_plane_only:
        kind = "a whole cluster" if known.with_node else "only a control plane"
        raise MachineError(
            f"{layout.root} holds {kind}: take it down first, or choose another --dir"
        )
    if options.base_port is not None and Ports.from_base(options.base_port) != known.ports:
        raise MachineError(
            f"the cluster in {layout.root} was made with other ports: take it down first, or leave"
            " out --base-port"
        )
    return known if options.kwok is None else replace(known, kwok_nodes=options.kwok)


def _ports(options: argparse.Namespace) -> Ports:
    if options.base_port is None and options.control_plane_only:
        return Ports.free()
    return Ports.from_base(options.base_port or DEFAULT_BASE_PORT)


def _down(_: argparse.Namespace, layout: Layout) -> int:
    say("down" if cluster.down(layout) else f"nothing to take down in {layout.root}")
    return 0


def _status(_: argparse.Namespace, layout: Layout) -> int:
    settings = Settings.load(layout.settings)
    if settings is None:
        print(f"no cluster in {layout.root}; `disagg-cluster up` starts one")
        return 1
    dead = 0
    for record in processes.records(layout.run):
        alive = processes.is_alive(record)
        dead += not alive
        print(f"{record.name:24} {'running' if alive else 'DEAD':8} pid {record.pid}")
    print(f"kubeconfig {layout.admin_kubeconfig}")
    return 1 if dead else 0


def _kubeconfig(_: argparse.Namespace, layout: Layout) -> int:
    if not layout.admin_kubeconfig.exists():
        raise ClusterError(f"no cluster in {layout.root}; `disagg-cluster up` starts one")
    print(layout.admin_kubeconfig)
    return 0


def _env(_: argparse.Namespace, layout: Layout) -> int:
    print(f"export KUBECONFIG={layout.admin_kubeconfig}")
    print(f'export PATH={ensure_binaries()}:"$PATH"')
    return 0


def _logs(options: argparse.Namespace, layout: Layout) -> int:
    names = sorted(path.stem for path in layout.logs.glob("*.log"))
    if options.component is None:
        print("\n".join(names))
        return 0
    if options.component not in names:
        raise ClusterError(f"no log of {options.component!r}; there are: {', '.join(names)}")
    return subprocess.run(
        ["tail", "-n", str(options.lines), str(layout.logs / f"{options.component}.log")],
        check=False,
    ).returncode


def _images(options: argparse.Namespace, _: Layout) -> int:
    return _print_images(build_images(), as_json=options.json)


def _load(options: argparse.Namespace, layout: Layout) -> int:
    if not layout.containerd_socket.exists():
        raise ClusterError(f"no node in {layout.root}; `disagg-cluster up` starts one")
    return _print_images(load_images(layout), as_json=options.json)


def _print_images(images: Sequence[Image], *, as_json: bool) -> int:
    names = {image.target: image.name for image in images}
    print(json.dumps(names) if as_json else "\n".join(names.values()))
    return 0


def _build(_: argparse.Namespace, __: Layout) -> int:
    for module in (CLUSTER, KWOK):
        print(ensure_binaries(module))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg-cluster", description=__doc__)
    parser.add_argument(
        "--dir",
        type=Path,
        help="the cluster's folder (default: $DISAGG_CLUSTER_DIR or /var/lib/disagg-cluster)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    up = command("up", _up, "start what is not running; does nothing on a running cluster")
    up.add_argument(
        "--control-plane-only", action="store_true", help="no node: API server and its company"
    )
    up.add_argument(
        "--base-port", type=int, help=f"first port to use (default {DEFAULT_BASE_PORT})"
    )
    up.add_argument("--kwok", type=int, metavar="N", help="also N simulated H200 nodes")
    up.add_argument("--no-images", action="store_true", help="do not build and load the images")
    command("down", _down, "end and remove all of it")
    command("status", _status, "which components run")
    command("kubeconfig", _kubeconfig, "print the admin kubeconfig's path")
    command("env", _env, "print shell lines that set KUBECONFIG and PATH")
    logs = command("logs", _logs, "list the logs, or print the end of one")
    logs.add_argument("component", nargs="?")
    logs.add_argument("--lines", type=int, default=100)
    command("build", _build, "build the binaries into the cache")
    for name, run, text in (
        ("images", _images, "build the images into the cache and print their names"),
        ("load", _load, "build the images and hand them to the running cluster"),
    ):
        sub = command(name, run, text)
        sub.add_argument("--json", action="store_true", help="as an object, target: name")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    layout = Layout(root=options.dir.resolve()) if options.dir else default_layout()
    try:
        run: Command = options.run
        return run(options, layout)
    except ClusterError as error:
        print(f"disagg-cluster: {error}", file=sys.stderr)
        return 1
