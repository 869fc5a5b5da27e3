"""Bringing a cluster up and taking it down. Both are level-triggered: they look at what runs and do the rest."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from disagg_cluster import controlplane, processes
from disagg_cluster.addresses import Ports, Settings
from disagg_cluster.api import ApiClient, wait_for
from disagg_cluster.binaries import ensure_binaries
from disagg_cluster.controlplane import Component
from disagg_cluster.errors import ComponentError
from disagg_cluster.kubeconfig import write_kubeconfigs
from disagg_cluster.layout import Layout
from disagg_cluster.pki import ensure_certificates
from disagg_cluster.progress import step

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
                controlplane.controller_manager(layout, binaries, ports),
                controlplane.scheduler(layout, binaries, ports),
            ],
        )
        api = ApiClient(port=ports.api, pki=layout.pki)
        # Admission refuses pods until the controller manager has made this account.
        wait_for(
            "the default service account",
            lambda: api.exists(DEFAULT_ACCOUNT),
            timeout_s=READY_TIMEOUT_S,
        )
    return started


def stop_processes(layout: Layout) -> None:
    """At once: the data goes with the cluster, and an API server without etcd takes 10 s to give up."""
    processes.stop(processes.records(layout.run), run=layout.run, grace_s=0)


@contextlib.contextmanager
def control_plane(directory: Path | None = None) -> Iterator[Path]:
    """An API server with nothing else running on the machine: yields the admin kubeconfig's path.

    Takes about 5 s, needs no root, uses free ports, and is gone at the end; any number can run side
    by side. Pods are scheduled nowhere: there is no node.
    """
    with contextlib.ExitStack() as cleanup:
        if directory is None:
            directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory("-disagg-api")))
        layout = Layout(root=directory)
        settings = Settings(ports=Ports.free(), with_node=False)
        cleanup.callback(shutil.rmtree, directory, ignore_errors=True)
        cleanup.callback(stop_processes, layout)
        start_control_plane(layout, settings)
        yield layout.admin_kubeconfig
