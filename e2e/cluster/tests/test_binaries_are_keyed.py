"""Built binaries are used while their inputs are the same, and only then."""

import dataclasses
import subprocess

import pytest

from disagg_cluster import binaries
from disagg_cluster.binaries import GoModule, build_key, parse_go_version
from disagg_cluster.errors import MachineError

MODULE = GoModule(
    title="t",
    folder=".",
    sources=("go.mod", "go.sum"),
    packages={"example.org/a/v2": "a"},
    linker_flags="-s",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "go.mod").write_text("module t\n")
    (tmp_path / "go.sum").write_text("sums\n")
    return tmp_path


def _key(folder, module=MODULE, version="go1.26.1"):
    return build_key(module, folder=folder, go_version=version)


def test_equal_inputs_have_one_key(folder):
    assert _key(folder) == _key(folder)


@pytest.mark.parametrize("source", MODULE.sources)
def test_a_changed_source_changes_the_key(folder, source):
    before = _key(folder)
    (folder / source).write_text("other\n")
    assert _key(folder) != before


@pytest.mark.parametrize("change", [{"linker_flags": "-w"}, {"packages": {"x": "y"}}])
def test_changed_flags_or_packages_change_the_key(folder, change):
    assert _key(folder, dataclasses.replace(MODULE, **change)) != _key(folder)


def test_another_go_changes_the_key(folder):
    assert _key(folder, version="go1.26.2") != _key(folder)


def test_every_source_of_the_real_modules_is_there():
    for module in (binaries.CLUSTER, binaries.KWOK):
        folder = binaries.repository_root() / module.folder
        assert all((folder / source).is_file() for source in module.sources)


def test_the_module_pins_the_kubernetes_it_is_stamped_with():
    text = (binaries.repository_root() / binaries.CLUSTER.folder / "go.mod").read_text()
    assert f"k8s.io/kubernetes v{binaries.KUBERNETES_VERSION} " in text


@pytest.mark.parametrize(
    ("text", "version"),
    [("go1.26.8", (1, 26)), ("go1.26.8 X:nodwarf5", (1, 26)), ("go2.0", (2, 0))],
)
def test_go_says_its_version(text, version):
    assert parse_go_version(text) == version


def test_no_go_is_said_with_what_to_install(monkeypatch, folder):
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(MachineError, match=r"install Go 1\.26"):
        binaries.go_version(folder)


def test_an_old_go_is_said_with_what_to_install(monkeypatch, folder):
    answer = subprocess.CompletedProcess([], 0, stdout="go1.22.1\n", stderr="")
    monkeypatch.setattr(binaries, "_go", lambda *_, **__: answer)
    monkeypatch.setattr(binaries.shutil, "which", lambda _: "/go")
    with pytest.raises(MachineError, match=r"Go is go1\.22\.1: install Go 1\.26"):
        binaries.go_version(folder)


def test_the_version_at_the_end_of_a_module_path_names_no_binary():
    assert binaries._go_binary_name("go.etcd.io/etcd/server/v3") == "server"
    assert binaries._go_binary_name("./coredns") == "coredns"
