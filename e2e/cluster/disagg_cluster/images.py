"""Images without a registry: the repository's Dockerfile, built by buildah, kept as an OCI layout.

Layers are kept uncompressed, so a layer's digest is known before it is written and each is written
once: after an edit only the layer that holds our source is new, in the layout and in containerd.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_cluster import node
from disagg_cluster.binaries import locked, require_free_disk
from disagg_cluster.dockerfile import content_hash
from disagg_cluster.errors import BuildError
from disagg_cluster.layout import Layout, cache_directory, repository_root
from disagg_cluster.machine import require_root
from disagg_cluster.packages import IMAGE_PACKAGES, ensure_packages
from disagg_cluster.progress import step
from disagg_cluster.teardown import unmount_below

TARGETS = ("operator", "agent", "engine", "router")
SUITE = "trixie"
FREE_BYTES_TO_BUILD = 10 << 30
CA_BUNDLE_IN_BUILD = "/run/build-ca.crt"
PIP_CACHE_IN_BUILD = "/run/build-pip"
REF_ANNOTATION = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    target: str
    tag: str

    @property
    def name(self) -> str:
        return f"docker.io/local/disagg-{self.target}:{self.tag}"

    @property
    def ref(self) -> str:
        """Its name in the OCI layout, which takes no slashes."""
        return f"disagg-{self.target}-{self.tag}"


def _home() -> Path:
    return cache_directory() / "images"


def _layout_folder() -> Path:
    return _home() / "layout"


def debian_mirror() -> str:
    """Empty: the one that debootstrap itself knows."""
    return os.environ.get("DISAGG_DEBIAN_MIRROR", "")


def base_key() -> str:
    return hashlib.sha256(f"{SUITE} minbase {debian_mirror()} 1".encode()).hexdigest()[:12]


def wanted_images() -> list[Image]:
    """By the content of the checkout as it is now."""
    root, base = repository_root(), base_key()
    return [Image(target=name, tag=content_hash(root, name, base=base)) for name in TARGETS]


def _run(what: str, argv: Iterable[str], *, env: Mapping[str, str] | None = None) -> str:
    answer = subprocess.run(
        list(argv), capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if answer.returncode != 0:
        tail = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-30:])
        raise BuildError(f"{what} failed:\n{tail}")
    return answer.stdout


def _buildah(what: str, *arguments: str) -> str:
    # Storage of its own: nothing of ours in the machine's images, nothing of theirs in our cache.
    home = _home()
    options = (
        f"--root={home / 'storage'}",
        f"--runroot={home / 'run'}",
        "--storage-driver=overlay",
    )
    return _run(what, ["buildah", *options, *arguments])


def _image_exists(name: str) -> bool:
    listed = _buildah("listing images", "images", "--format", "{{.Name}}:{{.Tag}}")
    return name in listed.split()


def _ensure_base() -> str:
    name = f"localhost/disagg-base:{base_key()}"
    if _image_exists(name):
        return name
    rootfs = _home() / "rootfs"
    shutil.rmtree(rootfs, ignore_errors=True)
    with step(f"building the base image (debootstrap {SUITE})"):
        mirror = [debian_mirror()] if debian_mirror() else []
        _run("debootstrap", ["debootstrap", "--variant=minbase", SUITE, str(rootfs), *mirror])
        container = _buildah("a new container", "from", "scratch").strip()
        _buildah("adding Debian", "add", "--quiet", container, str(rootfs), "/")
        # containerd refuses an image that says nothing to run.
        _buildah("setting a command", "config", "--cmd", "/bin/bash", container)
        _buildah("committing the base image", "commit", "--quiet", "--rm", container, name)
    shutil.rmtree(rootfs)
    return name


def render_pip_configuration(*, ca_bundle: Path | None, index_url: str | None) -> str:
    lines = [
        "[global]",
        f"cache-dir = {PIP_CACHE_IN_BUILD}",
        "disable-pip-version-check = true",
        "root-user-action = ignore",
    ]
    if ca_bundle is not None:
        lines.append(f"cert = {CA_BUNDLE_IN_BUILD}")
    if index_url:
        lines.append(f"index-url = {index_url}")
    return "\n".join(lines) + "\n"


def _machine_ca_bundle() -> Path | None:
    candidates = (os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt")
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def _build_volumes() -> list[str]:
    """The machine's trust and pip's cache, for the length of the build: none of it stays in a layer."""
    bundle = _machine_ca_bundle()
    configuration = _home() / "pip.conf"
    configuration.write_text(
        render_pip_configuration(ca_bundle=bundle, index_url=os.environ.get("PIP_INDEX_URL"))
    )
    downloads = cache_directory() / "pip"
    downloads.mkdir(exist_ok=True)
    volumes = [f"{configuration}:/etc/pip.conf:ro", f"{downloads}:{PIP_CACHE_IN_BUILD}"]
    if bundle is not None:
        volumes.append(f"{bundle}:{CA_BUNDLE_IN_BUILD}:ro")
    return [f"--volume={volume}" for volume in volumes]


def _read_index() -> dict[str, dict[str, Any]]:
    """Ref -> descriptor of its manifest."""
    path = _layout_folder() / "index.json"
    if not path.exists():
        return {}
    manifests = json.loads(path.read_text(encoding="utf-8"))["manifests"]
    return {one.get("annotations", {}).get(REF_ANNOTATION, ""): one for one in manifests}


def build_images() -> list[Image]:
    """All images of the checkout, built where they are not in the cache."""
    images = wanted_images()
    known = _read_index()
    missing = [image for image in images if image.ref not in known]
    if not missing:
        return images
    require_root()
    require_free_disk(cache_directory(), FREE_BYTES_TO_BUILD, "building images")
    ensure_packages(IMAGE_PACKAGES.items())
    _home().mkdir(parents=True, exist_ok=True)
    with locked(_home() / "build.lock"):
        try:
            base = _ensure_base()
            for image in missing:
                with step(f"building image {image.target}"):
                    _build(image, base=base)
        finally:
            # buildah mounts its storage on itself and leaves it so.
            unmount_below(_home())
    return images


def _build(image: Image, *, base: str) -> None:
    _buildah(
        f"building image {image.target}",
        "bud",
        "--quiet",
        "--layers",
        "--isolation=chroot",
        "--network=host",
        f"--build-arg=BASE_IMAGE={base}",
        *_build_volumes(),
        f"--target={image.target}",
        f"--tag={image.name}",
        str(repository_root()),
    )
    # buildah itself would compress on the way, 24 s of CPU each time for the engine's 1.7 GB.
    _run(
        f"writing image {image.target}",
        [
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-oci-accept-uncompressed-layers",
            f"containers-storage:[overlay@{_home() / 'storage'}+{_home() / 'run'}]{image.name}",
            f"oci:{_layout_folder()}:{image.ref}",
        ],
    )


def _blob(digest: str) -> Path:
    return _layout_folder() / "blobs" / digest.replace(":", "/")


def _members(descriptor: Mapping[str, Any]) -> list[str]:
    """Digests of the manifest, the configuration and the layers."""
    manifest = json.loads(_blob(descriptor["digest"]).read_text(encoding="utf-8"))
    parts = [manifest["config"], *manifest["layers"]]
    return [str(descriptor["digest"]), *(str(part["digest"]) for part in parts)]


def write_archive(image: Image, target: Path, *, present: frozenset[str] = frozenset()) -> None:
    """An OCI archive of what containerd does not have yet: the rest it finds in its own store."""
    descriptor = dict(_read_index()[image.ref])
    descriptor["annotations"] = {"io.containerd.image.name": image.name}
    documents = {
        "index.json": {"schemaVersion": 2, "manifests": [descriptor]},
        "oci-layout": {"imageLayoutVersion": "1.0.0"},
    }
    with tarfile.open(target, "w") as archive:
        for name, document in documents.items():
            body = json.dumps(document).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
        for digest in _members(descriptor):
            if digest not in present:
                archive.add(_blob(digest), arcname=f"blobs/{digest.replace(':', '/')}")


def load_images(layout: Layout) -> list[Image]:
    """Builds what is missing and hands it to the cluster's containerd."""
    images = build_images()
    with locked(layout.run / "load.lock"):
        there = set(node.ctr(layout, "images", "list", "--quiet").split())
        for image in images:
            if image.name not in there:
                _load(image, layout)
    return images


def _load(image: Image, layout: Layout) -> None:
    archive = layout.root / "image.tar"
    with step(f"loading image {image.target}"):
        present = frozenset(node.ctr(layout, "content", "list", "--quiet").split())
        write_archive(image, archive, present=present)
        node.ctr(layout, "images", "import", str(archive))
        archive.unlink()
