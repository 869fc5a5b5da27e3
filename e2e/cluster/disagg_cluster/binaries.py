"""Builds the cluster's programs from their Go modules, once per set of inputs."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from disagg_cluster.errors import BuildError, MachineError
from disagg_cluster.layout import cache_directory, repository_root
from disagg_cluster.progress import step

KUBERNETES_VERSION = "1.35.4"
OLDEST_GO = (1, 26)
FREE_BYTES_TO_BUILD = 6 << 30
_MAJOR, _MINOR, _ = KUBERNETES_VERSION.split(".")
_STAMPS = " ".join(
    # Without these, clients and nodes say v0.0.0 and version skew checks misfire.
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in (
        ("gitVersion", f"v{KUBERNETES_VERSION}"),
        ("gitMajor", _MAJOR),
        ("gitMinor", _MINOR),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GoModule:
    """A folder with go.mod, the packages to build from it, and what their binaries are called."""

    title: str
    folder: str
    sources: tuple[str, ...]
    packages: Mapping[str, str]
    linker_flags: str

    @property
    def binaries(self) -> tuple[str, ...]:
        return tuple(self.packages.values())


_KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
CLUSTER = GoModule(
    title="Kubernetes, etcd, CoreDNS and helm",
    folder="e2e/cluster/go",
    sources=("go.mod", "go.sum", "coredns/main.go", "pause/main.go"),
    packages={
        "go.etcd.io/etcd/server/v3": "etcd",
        "helm.sh/helm/v3/cmd/helm": "helm",
        **{f"k8s.io/kubernetes/cmd/{name}": name for name in _KUBERNETES_COMMANDS},
        "./coredns": "coredns",
        "./pause": "pause",
    },
    linker_flags=f"-s -w {_STAMPS}",
)
# kwok wants newer k8s.io modules than the kubelet above can be built with: a module of its own.
KWOK = GoModule(
    title="kwok",
    folder="e2e/cluster/go/kwok",
    sources=("go.mod", "go.sum"),
    packages={"sigs.k8s.io/kwok/cmd/kwok": "kwok"},
    linker_flags="-s -w",
)


def build_key(module: GoModule, *, folder: Path, go_version: str) -> str:
    digest = hashlib.sha256()
    for part in (go_version, module.linker_flags, repr(sorted(module.packages.items()))):
        digest.update(part.encode() + b"\0")
    for source in module.sources:
        digest.update(source.encode() + b"\0" + (folder / source).read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def parse_go_version(text: str) -> tuple[int, int]:
    found = re.search(r"go(\d+)\.(\d+)", text)
    if found is None:
        raise MachineError(f"`go env GOVERSION` says {text!r}, which is no Go version; install Go")
    return int(found[1]), int(found[2])


def _go_environment() -> dict[str, str]:
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-trimpath -buildvcs=false -mod=readonly",
        "GOCACHE": str(cache_directory() / "go-build"),
    }


def _go(arguments: list[str], *, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["go", *arguments],
        cwd=folder,
        env=_go_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def go_version(folder: Path) -> str:
    oldest = ".".join(str(number) for number in OLDEST_GO)
    if shutil.which("go") is None:
        raise MachineError(
            f"Go is not on PATH: install Go {oldest} or newer (the cluster's programs are built from"
            " their modules)"
        )
    answer = _go(["env", "GOVERSION"], folder=folder)
    if answer.returncode != 0:
        raise MachineError(f"`go env GOVERSION` failed: {answer.stderr.strip()}")
    if parse_go_version(answer.stdout) < OLDEST_GO:
        raise MachineError(
            f"Go is {answer.stdout.strip()}: install Go {oldest} or newer, or let it fetch one"
            " with GOTOOLCHAIN=auto"
        )
    return answer.stdout.strip()


def module_folder(module: GoModule, path: str) -> Path:
    """Where the sources of a dependency lie, fetched when they are not there."""
    folder = repository_root() / module.folder
    answer = _go(["mod", "download", "-json", path], folder=folder)
    if answer.returncode != 0:
        raise BuildError(f"fetching Go module {path} failed: {answer.stderr.strip()}")
    return Path(json.loads(answer.stdout)["Dir"])


def require_free_disk(folder: Path, wanted_bytes: int, purpose: str) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted_bytes:
        raise MachineError(
            f"{existing} has {free / 2**30:.1f} GiB free, {purpose} needs {wanted_bytes / 2**30:.0f}:"
            " free some, or set DISAGG_CACHE and DISAGG_CLUSTER_DIR to a larger disk"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One at a time among processes; the kernel lets go when the holder ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_binaries(module: GoModule = CLUSTER) -> Path:
    """The folder that holds the module's binaries; builds them when they are not there."""
    folder = repository_root() / module.folder
    version = go_version(folder)
    target = cache_directory() / "bin" / build_key(module, folder=folder, go_version=version)
    if not target.exists():
        with locked(cache_directory() / "bin" / "build.lock"):
            if not target.exists():
                _build(module, folder=folder, target=target)
    return target


def _build(module: GoModule, *, folder: Path, target: Path) -> None:
    require_free_disk(target.parent, FREE_BYTES_TO_BUILD, "building the cluster's programs")
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with step(f"building Go binaries ({module.title})"):
        answer = _go(
            ["build", "-ldflags", module.linker_flags, "-o", f"{partial}/", *module.packages],
            folder=folder,
        )
    if answer.returncode != 0:
        raise BuildError(f"building {module.title} in {folder} failed:\n{answer.stderr.strip()}")
    for package, name in module.packages.items():
        (partial / _go_binary_name(package)).rename(partial / name)
    partial.rename(target)


def _go_binary_name(package: str) -> str:
    """How `go build` calls it: the last path element that is no major version."""
    elements = [part for part in package.split("/") if not re.fullmatch(r"v\d+", part)]
    return elements[-1]
