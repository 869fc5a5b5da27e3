"""What is missing is said before anything is started, with what to do."""

import socket
from types import SimpleNamespace

import pytest

from disagg_cluster import binaries, cli, cluster, machine, packages
from disagg_cluster.addresses import Ports, Settings
from disagg_cluster.errors import MachineError
from disagg_cluster.layout import Layout


def test_without_root_it_says_what_works_without(monkeypatch):
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(
        MachineError, match="sudo, or use `up --control-plane-only`, or point KUBEC"
    ):
        machine.require_root()


def test_a_taken_port_is_named_with_the_flag_that_moves_it():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(MachineError, match=rf"port {taken} is taken.*--base-port"):
            machine.require_free_ports(Ports.from_base(taken))


def test_free_ports_are_free_and_distinct():
    ports = Ports.free()
    machine.require_free_ports(ports)
    assert len({getattr(ports, name) for name in Ports.__slots__}) == len(Ports.__slots__)


def test_a_short_disk_is_said_with_both_figures(monkeypatch, tmp_path):
    monkeypatch.setattr(binaries.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 << 30))
    with pytest.raises(MachineError, match=r"3\.0 GiB free, the cluster needs 15"):
        binaries.require_free_disk(tmp_path / "no" / "such", 15 << 30, "the cluster")


def test_missing_cgroup_hierarchies_are_named(tmp_path):
    for name in machine.CGROUP_V1_HIERARCHIES:
        (tmp_path / name).mkdir()
    machine.require_cgroups(tmp_path)
    (tmp_path / "memory").rmdir()
    with pytest.raises(MachineError, match=r"not mounted below .*: memory\. Mount"):
        machine.require_cgroups(tmp_path)


def test_the_unified_hierarchy_is_enough(tmp_path):
    (tmp_path / "cgroup.controllers").touch()
    machine.require_cgroups(tmp_path)


def test_a_folder_too_long_for_sockets_is_refused(tmp_path):
    with pytest.raises(MachineError, match="shorter --dir"):
        machine.require_short_directory(Layout(root=tmp_path / ("x" * 60)))


def test_only_packages_whose_commands_are_missing_are_installed():
    wanted = {"sh": "dash", "no-such-command": "some-package", "/no/such/file": "some-package"}
    assert packages.missing_packages(wanted.items()) == ["some-package"]


def test_down_removes_no_folder_that_up_did_not_make(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(MachineError, match="nothing was removed"):
        cluster.down(Layout(root=tmp_path))
    assert (tmp_path / "thesis.txt").exists()


def test_settings_survive_the_disk(tmp_path):
    settings = Settings(ports=Ports.from_base(20000), with_node=True, kwok_nodes=3)
    settings.save(tmp_path / "cluster.json")
    assert Settings.load(tmp_path / "cluster.json") == settings
    assert Settings.load(tmp_path / "none.json") is None


def test_damaged_settings_say_what_to_do(tmp_path):
    (tmp_path / "cluster.json").write_text('{"ports": 1}')
    with pytest.raises(MachineError, match="disagg-cluster down"):
        Settings.load(tmp_path / "cluster.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--control-plane-only"], "holds a whole cluster"),
        (["up", "--base-port", "1"], "made with other ports"),
    ],
)
def test_a_running_cluster_is_not_turned_into_another(tmp_path, capsys, arguments, said):
    Settings(ports=Ports.from_base(20000), with_node=True).save(tmp_path / "cluster.json")
    assert cli.main(["--dir", str(tmp_path), *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "kubeconfig", "load"])
def test_commands_without_a_cluster_say_how_to_start_one(tmp_path, capsys, command):
    assert cli.main(["--dir", str(tmp_path / "none"), command]) == 1
    output = capsys.readouterr()
    assert "`disagg-cluster up` starts one" in output.out + output.err
