"""Where the scenarios play: the embedded cluster, or the user's own when KUBECONFIG names it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from disagg_cluster.binaries import ensure_binaries
from disagg_scenarios.kube import Kubectl

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLES = REPOSITORY / "examples"
OPERATOR_CHART = REPOSITORY / "charts" / "disagg-operator"
OPERATOR_NAMESPACE = "disagg-system"
RELEASE = "disagg"
IMAGES = ("operator", "agent", "engine", "router")


class StageError(Exception):
    """The cluster or its tools are not as the scenarios need them; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A running cluster, the tools that reach it and the images it can start."""

    kubeconfig: Path
    kubectl: Path
    helm: Path
    images: Mapping[str, str]

    def namespace(self, name: str) -> Kubectl:
        """kubectl in one namespace."""
        return Kubectl(program=self.kubectl, kubeconfig=self.kubeconfig, namespace=name)


def own_cluster() -> Path | None:
    """The kubeconfig of the user's own cluster, when KUBECONFIG is set."""
    named = os.environ.get("KUBECONFIG", "")
    return Path(named) if named else None


def open_stage() -> Stage:
    """Start the embedded cluster and load our images, or take the user's cluster as it is."""
    kubeconfig = own_cluster()
    if kubeconfig is not None:
        return _users_stage(kubeconfig)
    kubeconfig = Path(_cluster("up", "--no-images"))
    images = json.loads(_cluster("load", "--json"))
    return Stage(
        kubeconfig=kubeconfig,
        kubectl=cluster_tool("kubectl"),
        helm=cluster_tool("helm"),
        images=images,
    )


def _users_stage(kubeconfig: Path) -> Stage:
    images = {name: os.environ.get(f"DISAGG_{name.upper()}_IMAGE", "") for name in IMAGES}
    absent = [f"DISAGG_{name.upper()}_IMAGE" for name, image in images.items() if not image]
    if absent:
        raise StageError(
            f"KUBECONFIG is set, so {', '.join(absent)} must name images that your cluster can"
            " pull; build them with: docker build --target operator|agent|engine|router ."
        )
    return Stage(
        kubeconfig=kubeconfig,
        kubectl=_tool("kubectl"),
        helm=_tool("helm"),
        images=images,
    )


def cluster_tool(name: str) -> Path:
    """A program of the embedded cluster, built when it is not yet there."""
    return ensure_binaries() / name


def _tool(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise StageError(f"{name} is not on PATH; install it, it talks to your own cluster")
    return Path(found)


def _cluster(*args: str) -> str:
    """What disagg-cluster prints; its progress goes to standard error, and so to the user."""
    done = subprocess.run(
        [sys.executable, "-m", "disagg_cluster", *args], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise StageError(f"disagg-cluster {' '.join(args)} failed; its last lines say why")
    return done.stdout.decode().strip()


def install_operator(stage: Stage) -> str:
    """helm upgrade --install of the operator with this checkout's images; returns what helm said."""
    settings = [f"--set=images.{name}={image}" for name, image in stage.images.items()]
    done = subprocess.run(
        [
            str(stage.helm),
            f"--kubeconfig={stage.kubeconfig}",
            *("upgrade", "--install", RELEASE, str(OPERATOR_CHART)),
            *("--namespace", OPERATOR_NAMESPACE, "--create-namespace"),
            *("--wait", "--timeout", "180s"),
            *settings,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StageError(f"helm upgrade --install {RELEASE}: {done.stderr.strip()}")
    return done.stdout
