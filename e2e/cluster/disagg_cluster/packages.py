"""The Debian packages the node and the image builds need; installed when their commands are missing."""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from disagg_cluster.errors import MachineError
from disagg_cluster.progress import say, step

# Command (or file) that shows the package is there -> package.
NODE_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "ip": "iproute2",
    "nft": "nftables",
}
IMAGE_PACKAGES = {
    "buildah": "buildah",
    # Only recommended by buildah, which yet makes no container without it.
    "/usr/lib/podman/netavark": "netavark",
    "debootstrap": "debootstrap",
    "skopeo": "skopeo",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _is_there(marker: str) -> bool:
    if marker.startswith("/"):
        return Path(marker).exists()
    return shutil.which(marker, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}") is not None


def missing_packages(wanted: Iterable[tuple[str, str]]) -> list[str]:
    return sorted({package for marker, package in wanted if not _is_there(marker)})


def ensure_packages(wanted: Iterable[tuple[str, str]]) -> None:
    missing = missing_packages(wanted)
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise MachineError(f"missing, and there is no apt-get to install them: {names}")
    say(f"installing Debian packages: {names}")
    with step("apt-get install"):
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *missing)


def _apt(*arguments: str) -> None:
    answer = subprocess.run(
        ["apt-get", "--quiet", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise MachineError(
            f"`apt-get {' '.join(arguments)}` failed; run it by hand and then again `up`:\n"
            f"{answer.stderr.strip()}"
        )
