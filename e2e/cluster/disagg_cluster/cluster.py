"""Bringing a cluster up and taking it down. Both are level-triggered: they look at what runs and do the rest."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from disagg_cluster import controlplane, kwok, machine, node, processes, teardown
from disagg_cluster.addresses import KWOK_OCTETS, NODE_NAME, Ports, Settings, own_network
from disagg_cluster.api import ApiClient, wait_for
from disagg_cluster.binaries import KWOK, ensure_binaries, locked
from disagg_cluster.controlplane import Component
from disagg_cluster.errors import ComponentError, MachineError
from disagg_cluster.kubeconfig import write_kubeconfigs
from disagg_cluster.layout import Layout
from disagg_cluster.network import ensure_bridge, remove_network
from disagg_cluster.packages import NODE_PACKAGES, ensure_packages
from disagg_cluster.pause import write_pause_archive
from disagg_cluster.pki import ensure_certificates
from disagg_cluster.progress import step
from disagg_cluster.system_objects import system_objects

READY_TIMEOUT_S = 120.0  # two busy cores; 5 s when they are idle
DEFAULT_ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/default"


def run_component(layout: Layout, component: Component) -> bool:
    """Starts it where it does not run, and waits until it is ready. True when it was started."""
    name = component.program.name
    started = processes.ensure(component.program, run=layout.run, logs=layout.logs)

    def ended() -> str | None:
        record = processes.read_record(layout.run, name)
        if record is not None and processes.is_alive(record):
            return None
        return f"ended{processes.log_tail(layout.logs, name)}"

    try:
        wait_for(name, component.is_ready, timeout_s=READY_TIMEOUT_S, failure=ended)
    except ComponentError as error:
        tail = "" if "last lines" in str(error) else processes.log_tail(layout.logs, name)
        raise ComponentError(f"{error}{tail}") from error
    return started


def run_components(layout: Layout, components: Sequence[Component]) -> list[str]:
    return [one.program.name for one in components if run_component(layout, one)]


def start_control_plane(layout: Layout, settings: Settings) -> list[str]:
    """The names of the components that had to be started."""
    binaries = ensure_binaries()
    layout.make()
    ensure_certificates(layout.pki)
    write_kubeconfigs(folder=layout.kubeconfigs, pki=layout.pki, api_port=settings.ports.api)
    controlplane.write_control_plane_files(layout)
    ports = settings.ports
    with step("starting the control plane"):
        started = run_components(
            layout,
            [
                controlplane.etcd(layout, binaries, ports),
                controlplane.api_server(layout, binaries, ports, with_node=settings.with_node),
                controlplane.controller_manager(layout, binaries, settings),
                controlplane.scheduler(layout, binaries, ports),
            ],
        )
        api = ApiClient(port=ports.api, pki=layout.pki)
        # Admission refuses pods until the controller manager has made this account.
        wait_for(
            "the default service account",
            lambda: api.get(DEFAULT_ACCOUNT) is not None,
            timeout_s=READY_TIMEOUT_S,
        )
    return started


def stop_processes(layout: Layout) -> None:
    """At once: the data goes with the cluster, and an API server without etcd takes 10 s to give up."""
    processes.stop(processes.records(layout.run), run=layout.run, grace_s=0)


def start_node(layout: Layout, settings: Settings) -> list[str]:
    binaries, ports = ensure_binaries(), settings.ports
    node.write_node_files(layout, ports)
    teardown.make_cgroups(layout.cgroup)
    with step("starting the node"):
        started = run_components(layout, [node.containerd(layout)])
        ensure_pause_image(layout, binaries)
        api = ApiClient(port=ports.api, pki=layout.pki)
        for path, intent in system_objects().items():
            api.apply(path, intent)
        started += run_components(
            layout,
            [
                node.coredns(layout, binaries, ports),
                node.kubelet(layout, binaries, ports),
                node.kube_proxy(layout, binaries, ports),
            ],
        )
        wait_for(
            f"node {NODE_NAME}",
            lambda: api.is_node_ready(NODE_NAME),
            timeout_s=READY_TIMEOUT_S,
        )
    return started


def start_kwok(layout: Layout, settings: Settings) -> list[str]:
    binaries = ensure_binaries(KWOK)
    kwok.write_kwok_files(layout)
    started = run_components(layout, [kwok.kwok(layout, binaries, settings)])
    api = ApiClient(port=settings.ports.api, pki=layout.pki)
    with step(f"making {settings.kwok_nodes} simulated nodes"):
        kwok.ensure_nodes(api, settings.kwok_nodes, tainted=settings.with_node)
        wait_for(
            "the simulated nodes",
            lambda: all(
                api.is_node_ready(kwok.node_name(index)) for index in range(settings.kwok_nodes)
            ),
            timeout_s=READY_TIMEOUT_S,
        )
    return started


def ensure_pause_image(layout: Layout, binaries: Path) -> None:
    if node.PAUSE_IMAGE in node.ctr(layout, "images", "list", "--quiet").split():
        return
    archive = layout.root / "pause.tar"
    write_pause_archive(binaries, archive, image=node.PAUSE_IMAGE)
    node.ctr(layout, "images", "import", str(archive))
    node.ctr(layout, "images", "label", node.PAUSE_IMAGE, "io.cri-containerd.pinned=pinned")


def up(layout: Layout, wanted: Settings) -> list[str]:
    """Brings up what is not up. Returns what had to be started: nothing on a running cluster."""
    if wanted.with_node:
        machine.require_node_machine(layout)
        ensure_packages(NODE_PACKAGES.items())
    ensure_binaries()
    layout.make()
    with locked(layout.run / "lock"):
        if not any(processes.is_alive(one) for one in processes.records(layout.run)):
            machine.require_free_ports(wanted.ports)
        wanted.save(layout.settings)
        if wanted.with_node:
            ensure_bridge(remembered=layout.root / "ip_forward.before")
        started = start_control_plane(layout, wanted)
        if wanted.with_node:
            started += start_node(layout, wanted)
        if wanted.kwok_nodes or processes.read_record(layout.run, "kwok") is not None:
            started += start_kwok(layout, wanted)
    return started


def down(layout: Layout) -> bool:
    """Ends and removes all of it; False when there was nothing. Works on a half-dead cluster."""
    if not layout.root.exists():
        return False
    lock = layout.run / "lock"
    if not lock.exists():
        raise MachineError(
            f"{layout.root} is not a folder that `up` made: nothing was removed; check --dir and"
            " DISAGG_CLUSTER_DIR"
        )
    with locked(lock), step("taking the cluster down"):
        stop_processes(layout)
        if _had_node(layout):
            machine.require_root()
            teardown.end_pods(layout)
            teardown.remove_traces(layout)
            remove_network(remembered=layout.root / "ip_forward.before")
        shutil.rmtree(layout.root)
    return True


def _had_node(layout: Layout) -> bool:
    """Yes when in doubt: taking away what is not there does no harm."""
    try:
        settings = Settings.load(layout.settings)
    except MachineError:
        return True
    return settings is not None and settings.with_node


@contextlib.contextmanager
def control_plane(directory: Path | None = None, *, kwok_nodes: int = 0) -> Iterator[Path]:
    """An API server with nothing else running on the machine: yields the admin kubeconfig's path.

    Takes about 5 s, needs no root, uses free ports, and is gone at the end; 64 can run side by
    side. Pods are scheduled nowhere without `kwok_nodes`; those of simulated nodes have addresses
    of the loopback network.
    """
    with contextlib.ExitStack() as cleanup:
        if directory is None:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory("-disagg-api")))
        layout = Layout(root=directory)
        octet = cleanup.enter_context(own_network(KWOK_OCTETS))
        settings = Settings(
            ports=Ports.free(),
            with_node=False,
            kwok_nodes=kwok_nodes,
            kwok_network=f"127.{octet}.0.0/16",
        )
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        cleanup.callback(stop_processes, layout)
        start_control_plane(layout, settings)
        if kwok_nodes:
            start_kwok(layout, settings)
        yield layout.admin_kubeconfig
