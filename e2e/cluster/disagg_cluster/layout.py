"""Where things lie: one folder per cluster, one cache for all clusters and checkouts."""

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_DIRECTORY = "/var/lib/disagg-cluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The folder of one cluster. All that `up` makes is below it; `down` removes it."""

    root: Path

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def kubeconfigs(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.kubeconfigs / "admin.yaml"

    @property
    def configs(self) -> Path:
        return self.root / "config"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def settings(self) -> Path:
        return self.root / "cluster.json"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """Every process of every pod is below it, in each hierarchy. One per cluster: `down` kills by it."""
        name = self.root.name
        return name if name.startswith("disagg-") else f"disagg-{name}"

    def make(self) -> None:
        for folder in (self.root, self.pki, self.kubeconfigs, self.configs, self.logs, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def default_layout() -> Layout:
    return Layout(root=Path(os.environ.get("DISAGG_CLUSTER_DIR", DEFAULT_DIRECTORY)))


def cache_directory() -> Path:
    """Binaries and images, keyed by their inputs: shared by clusters, kept by `down`."""
    configured = os.environ.get("DISAGG_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "disagg"


def repository_root() -> Path:
    """The checkout this package lies in: the Go modules and the Dockerfile are read from it."""
    return Path(__file__).resolve().parents[3]


def write_when_changed(path: Path, body: str, *, mode: int = 0o644) -> None:
    """Leaves an equal file alone: kube-proxy ends itself when its configuration is written to."""
    if path.exists() and path.read_text(encoding="utf-8") == body:
        return
    path.touch(mode=mode)
    path.write_text(body, encoding="utf-8")
