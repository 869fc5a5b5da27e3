"""The settings without which a node does not run on the machines this was measured on."""

import ipaddress
import tomllib
from pathlib import Path

import pytest

from disagg_cluster import kwok, network, node, teardown
from disagg_cluster.addresses import (
    KWOK_POD_NETWORK,
    LAST_REAL_POD_ADDRESS,
    Ports,
    own_network,
)
from disagg_cluster.errors import MachineError
from disagg_cluster.layout import Layout, write_when_changed

PORTS = Ports.from_base(20000)


@pytest.fixture
def layout(tmp_path):
    return Layout(root=tmp_path / "disagg-cluster")


def test_containerd_keeps_all_of_its_state_in_the_cluster_folder(layout):
    config = tomllib.loads(node.render_containerd(layout))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    runc = cri["containerd"]["runtimes"]["runc"]["options"]
    for path in (config["root"], config["state"], config["grpc"]["address"], runc["Root"]):
        assert path.startswith(str(layout.root))
    assert cri["restrict_oom_score_adj"] is True
    assert cri["netns_mounts_under_state_dir"] is True
    assert runc["SystemdCgroup"] is False


def test_kubelet_takes_old_cgroups_and_never_collects_images(layout):
    config = node.render_kubelet(layout, PORTS)
    assert config["failCgroupV1"] is False
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["enforceNodeAllocatable"] == []
    assert config["cgroupRoot"] == f"/{layout.cgroup}"


@pytest.mark.parametrize(
    ("folder", "cgroup"),
    [("/var/lib/disagg-cluster", "disagg-cluster"), ("/srv/system.slice", "disagg-system.slice")],
)
def test_a_cluster_kills_by_a_cgroup_that_is_surely_its_own(folder, cgroup):
    assert Layout(root=Path(folder)).cgroup == cgroup


def test_pods_have_no_way_out_of_the_machine(layout):
    plugin = network.render_cni(address_folder=layout.root)["plugins"][0]
    assert plugin["ipam"]["routes"] == [{"dst": "198.18.0.0/15"}]
    assert plugin["ipMasq"] is False


def test_simulated_pods_never_get_the_address_of_a_real_one():
    simulated = ipaddress.ip_network(KWOK_POD_NETWORK)
    assert ipaddress.ip_address(LAST_REAL_POD_ADDRESS) < simulated.network_address


def test_each_has_a_loopback_network_of_its_own_until_it_ends():
    two = range(200, 202)  # of nobody else
    with own_network(two) as one, own_network(two) as other:
        assert {one, other} == set(two)
        with pytest.raises(MachineError, match=r"127\.200 to 127\.201 are taken"), own_network(two):
            pass
    with own_network(range(200, 201)) as again:
        assert again == 200


def test_simulated_nodes_are_h200_nodes_and_tainted_beside_a_real_one():
    made = kwok.render_node(7, tainted=True)
    assert made["metadata"]["name"] == "h200-007"
    assert made["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H200"
    assert made["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert made["spec"]["taints"]
    assert kwok.render_node(7, tainted=False)["spec"] == {}


def test_mounts_are_found_innermost_first_and_only_ours():
    table = (
        "a /var/lib/x ext4 rw 0 0\n"
        "b /var/lib/x/one\\040two tmpfs rw 0 0\n"
        "c /var/lib/xy overlay rw 0 0\n"
    )
    assert teardown.mounts_below(Path("/var/lib/x"), table) == ["/var/lib/x/one two", "/var/lib/x"]


def test_a_cluster_makes_and_finds_its_cgroups_in_every_hierarchy(tmp_path):
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").touch()
    teardown.make_cgroups("ours", root=tmp_path)
    (tmp_path / "cpu/ours/kubepods").mkdir()
    found = teardown.cgroup_folders("ours", root=tmp_path)
    assert set(found) == {
        tmp_path / "cpu/ours/kubepods",
        tmp_path / "cpu/ours",
        tmp_path / "memory/ours",
    }
    assert found.index(tmp_path / "cpu/ours/kubepods") < found.index(tmp_path / "cpu/ours")


def test_an_equal_file_is_not_written_again(tmp_path):
    path = tmp_path / "f"
    write_when_changed(path, "body")
    path.chmod(0o400)
    before = path.stat().st_mtime_ns
    write_when_changed(path, "body")
    assert path.stat().st_mtime_ns == before
