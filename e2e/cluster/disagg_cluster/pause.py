"""The pause image, put together by hand from one static binary: no registry, no build tool."""

import hashlib
import io
import json
import tarfile
from pathlib import Path


def _add(archive: tarfile.TarFile, name: str, body: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(body)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(body))


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (body, mode) in files.items():
            _add(archive, name, body, mode)
    return buffer.getvalue()


def pause_archive(binary: bytes, *, image: str) -> bytes:
    """A docker archive of one layer: the same bytes for the same binary."""
    layer = _tar({"pause": (binary, 0o755)})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "config.json": (json.dumps(config).encode(), 0o644),
            "layer.tar": (layer, 0o644),
            "manifest.json": (json.dumps(manifest).encode(), 0o644),
        }
    )


def write_pause_archive(binaries: Path, target: Path, *, image: str) -> None:
    target.write_bytes(pause_archive((binaries / "pause").read_bytes(), image=image))
