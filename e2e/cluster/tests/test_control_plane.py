"""The real thing without a node: up, idempotent, healed, gone."""

import os
import time

import pytest

from disagg_cluster import cluster, processes
from disagg_cluster.addresses import Ports, Settings
from disagg_cluster.api import ApiClient, wait_for
from disagg_cluster.layout import Layout

pytestmark = pytest.mark.api


def test_a_control_plane_comes_up_heals_and_leaves_nothing(tmp_path):
    layout = Layout(root=tmp_path / "c")
    settings = Settings(ports=Ports.free(), with_node=False)
    try:
        started = cluster.up(layout, settings)
        assert started == ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
        records = processes.records(layout.run)

        begun = time.monotonic()
        assert cluster.up(layout, settings) == []
        assert time.monotonic() - begun < 2

        scheduler = processes.read_record(layout.run, "kube-scheduler")
        os.kill(scheduler.pid, 9)
        wait_for("its end", lambda: not processes.is_alive(scheduler), timeout_s=10)
        assert cluster.up(layout, settings) == ["kube-scheduler"]

        api = ApiClient(port=settings.ports.api, pki=layout.pki)
        account = api.get("/api/v1/namespaces/default/serviceaccounts/default")
        assert account["metadata"]["name"] == "default"
        wait_for("the audit log", lambda: layout.audit_log.stat().st_size > 0, timeout_s=10)
        records += processes.records(layout.run)
    finally:
        assert cluster.down(layout)
    assert not any(processes.is_alive(record) for record in records)
    assert not layout.root.exists()
    assert not cluster.down(layout)
