"""Reads from the Dockerfile what each target is made of, so that a tag can name its content."""

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from disagg_cluster.errors import BuildError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One FROM ... of the file: its text, the stages it builds on, the files it copies."""

    text: str
    needs: tuple[str, ...]
    copied: tuple[str, ...]


def _instructions(text: str) -> Iterator[str]:
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = "\n".join(lines).replace("\\\n", " ")
    yield from (line.strip() for line in joined.splitlines() if line.strip())


def _from_line(line: str) -> tuple[str, str]:
    found = re.fullmatch(r"FROM\s+(\S+)\s+AS\s+(\S+)", line, flags=re.IGNORECASE)
    if found is None:
        raise BuildError(f"Dockerfile: every stage needs a name, as `FROM x AS name`; got {line!r}")
    return found[1], found[2]


def _copy_line(line: str) -> tuple[str | None, list[str]]:
    """The stage a COPY takes from, or None and the files of the checkout."""
    words = shlex.split(line)[1:]
    flags = [word for word in words if word.startswith("--")]
    sources = [word for word in words if not word.startswith("--")][:-1]
    origin = next(
        (flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")), None
    )
    return origin, sources


def parse_dockerfile(text: str) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    name = ""
    lines: list[str] = []
    needs: list[str] = []
    copied: list[str] = []
    for line in [*_instructions(text), "FROM end AS end"]:
        word = line.split(maxsplit=1)[0].upper()
        if word == "FROM":
            if name:
                stages[name] = Stage(
                    text="\n".join(lines), needs=tuple(needs), copied=tuple(copied)
                )
            parent, name = _from_line(line)
            lines, needs, copied = [line], [parent], []
            continue
        lines.append(line)
        if word == "COPY":
            origin, sources = _copy_line(line)
            if origin is None:
                copied += sources
            else:
                needs.append(origin)
    return stages


def closure(stages: Mapping[str, Stage], target: str) -> dict[str, Stage]:
    """The target's stage and all it builds on; a name that is no stage is an image from outside."""
    if target not in stages:
        raise BuildError(f"Dockerfile has no target {target!r}; there are: {', '.join(stages)}")
    found: dict[str, Stage] = {}
    waiting = [target]
    while waiting:
        name = waiting.pop()
        if name in found or name not in stages:
            continue
        found[name] = stages[name]
        waiting += stages[name].needs
    return dict(sorted(found.items()))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for child in sorted(path.rglob("*")):
        if child.is_file() and "__pycache__" not in child.parts:
            yield child


def content_hash(repository: Path, target: str, *, base: str) -> str:
    """12 hex digits of all that goes into the target: same inputs, same tag."""
    stages = parse_dockerfile((repository / "Dockerfile").read_text(encoding="utf-8"))
    digest = hashlib.sha256(base.encode())
    for name, stage in closure(stages, target).items():
        digest.update(f"\0{name}\0{stage.text}".encode())
        for source in stage.copied:
            if not (repository / source).exists():
                raise BuildError(f"Dockerfile copies {source}, which is not in {repository}")
            for path in _files(repository / source):
                digest.update(f"\0{path.relative_to(repository)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
