"""A tag names what is in the image; what containerd has already is not sent again."""

import io
import json
import shutil
import tarfile

import pytest

from disagg_cluster import images
from disagg_cluster.dockerfile import closure, content_hash, parse_dockerfile
from disagg_cluster.errors import BuildError
from disagg_cluster.images import Image, write_archive
from disagg_cluster.layout import repository_root
from disagg_cluster.pause import pause_archive


@pytest.fixture
def checkout(tmp_path):
    root = repository_root()
    shutil.copy(root / "Dockerfile", tmp_path)
    stages = parse_dockerfile((root / "Dockerfile").read_text())
    for source in {source for stage in stages.values() for source in stage.copied}:
        target = tmp_path / source
        if (root / source).is_dir():
            target.mkdir(parents=True, exist_ok=True)
            (target / "module.py").write_text("pass\n")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("\n")
    return tmp_path


def _tags(checkout):
    return {target: content_hash(checkout, target, base="b") for target in images.TARGETS}


def _changed(before, after):
    return {target for target in before if before[target] != after[target]}


@pytest.mark.parametrize(
    ("source", "rebuilt"),
    [
        ("operator/disagg_operator/module.py", {"operator"}),
        ("transfer/disagg_transfer/module.py", {"agent", "engine"}),
        ("transfer/disagg_transfer/contract.py", {"operator", "agent", "engine"}),
        ("e2e/engine/disagg_engine/module.py", {"engine"}),
        ("requirements/router.txt", {"router"}),
    ],
)
def test_an_edit_renames_exactly_the_images_it_is_in(checkout, source, rebuilt):
    before = _tags(checkout)
    (checkout / source).write_text("# edited\n")
    assert _changed(before, _tags(checkout)) == rebuilt


def test_an_edit_of_the_first_stage_renames_all(checkout):
    before = _tags(checkout)
    dockerfile = checkout / "Dockerfile"
    dockerfile.write_text(dockerfile.read_text().replace("ca-certificates python3", "python3"))
    assert _changed(before, _tags(checkout)) == set(images.TARGETS)


def test_comments_and_byte_code_rename_nothing(checkout):
    before = _tags(checkout)
    dockerfile = checkout / "Dockerfile"
    dockerfile.write_text("# hello\n" + dockerfile.read_text())
    cached = checkout / "operator/disagg_operator/__pycache__"
    cached.mkdir()
    (cached / "module.pyc").write_text("x")
    assert _tags(checkout) == before


def test_the_base_is_part_of_the_name(checkout):
    one, other = (content_hash(checkout, "agent", base=base) for base in ("a", "b"))
    assert one != other


def test_the_operator_image_holds_neither_torch_nor_nixl():
    stages = parse_dockerfile((repository_root() / "Dockerfile").read_text())
    text = "\n".join(stage.text for stage in closure(stages, "operator").values())
    pins = (repository_root() / "requirements/operator.txt").read_text()
    assert "torch" not in text + pins
    assert "nixl" not in text + pins


@pytest.mark.parametrize("target", images.TARGETS)
def test_every_image_runs_as_nobody_special(target):
    stages = parse_dockerfile((repository_root() / "Dockerfile").read_text())
    assert "USER 65532:65532" in stages[target].text


def test_a_target_that_is_not_there_names_those_that_are(checkout):
    with pytest.raises(BuildError, match="no target 'x'; there are: python, "):
        content_hash(checkout, "x", base="b")


def test_a_missing_source_is_named(checkout):
    (checkout / "requirements/agent.txt").unlink()
    with pytest.raises(BuildError, match=r"copies requirements/agent\.txt, which is not in"):
        content_hash(checkout, "agent", base="b")


def test_an_unnamed_stage_is_refused():
    with pytest.raises(BuildError, match="every stage needs a name"):
        parse_dockerfile("FROM scratch\n")


def test_the_archive_leaves_out_what_containerd_has(tmp_path, monkeypatch):
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path))
    image = Image(target="agent", tag="t1")
    layout = tmp_path / "images/layout"
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    layers = [{"digest": "sha256:old"}, {"digest": "sha256:new"}]
    manifest = {"config": {"digest": "sha256:config"}, "layers": layers}
    for name, body in (("m", json.dumps(manifest)), ("config", "{}"), ("old", "o"), ("new", "n")):
        (blobs / name).write_text(body)
    descriptor = {"digest": "sha256:m", "annotations": {images.REF_ANNOTATION: image.ref}}
    (layout / "index.json").write_text(json.dumps({"manifests": [descriptor]}))

    write_archive(image, tmp_path / "a.tar", present=frozenset({"sha256:old"}))

    with tarfile.open(tmp_path / "a.tar") as archive:
        index = json.load(archive.extractfile("index.json"))
        members = set(archive.getnames())
    assert members == {"index.json", "oci-layout"} | {
        f"blobs/sha256/{name}" for name in ("m", "config", "new")
    }
    assert index["manifests"][0]["annotations"] == {
        "io.containerd.image.name": "docker.io/local/disagg-agent:t1"
    }


def test_pip_is_told_of_the_bundle_only_where_there_is_one():
    with_bundle = images.render_pip_configuration(ca_bundle=repository_root(), index_url=None)
    without = images.render_pip_configuration(ca_bundle=None, index_url=None)
    assert "cert = /run/build-ca.crt" in with_bundle
    assert "cert" not in without
    assert "index-url" not in without


def test_the_pause_image_is_the_same_bytes_for_the_same_binary():
    one, again = (pause_archive(b"binary", image="local/pause:1") for _ in range(2))
    assert one == again
    with tarfile.open(fileobj=io.BytesIO(one)) as archive:
        assert json.load(archive.extractfile("manifest.json"))[0]["RepoTags"] == ["local/pause:1"]
