"""The size of the generated CRD."""

from collections.abc import Iterator
from pathlib import Path

from disagg_bench.rows import Row, below


def measure_crd(root: Path) -> Iterator[Row]:
    size = (root / "crds" / "disaggdeployments.disagg.dev.yaml").stat().st_size
    yield Row(name="crd/size", value=size / 1024, unit="KiB", target=below(64))
