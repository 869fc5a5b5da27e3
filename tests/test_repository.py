"""Rules of the tree that no linter knows."""

import ast
import operator
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "operator/disagg_operator",
    "transfer/disagg_transfer",
    "e2e/engine/disagg_engine",
    "e2e/cluster/disagg_cluster",
    "e2e/cluster/disagg_fleet",
    "e2e/scenarios/disagg_scenarios",
    "e2e/bench/disagg_bench",
    "e2e/faults/disagg_faults",
)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
BANNED = {"manager", "helper", "helpers", "util", "utils", "common", "misc"}
MODULE_LINES = 400
FUNCTION_LINES = 60


def test_the_operator_folder_is_no_package_so_that_the_standard_library_stays_visible():
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert Path(operator.__file__).parent != ROOT / "operator"


def test_the_wheel_holds_no_name_of_the_standard_library():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert "operator" not in {Path(package).name for package in packages}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_small_and_named_for_one_idea(module):
    text = module.read_text()
    assert len(text.splitlines()) <= MODULE_LINES
    assert not BANNED & set(module.stem.split("_"))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, node.name


def test_only_the_fabric_and_the_baseline_it_is_measured_against_import_nixl():
    seeing = {path.name for path in MODULES if "nixl_cu1" in path.read_text()}
    assert seeing <= {"nixl_fabric.py", "baseline_nixl.py"}


def test_the_operator_starts_with_the_modules_that_its_image_holds(tmp_path):
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stage = text.partition("AS operator\n")[2].partition("\nFROM")[0]
    for line in re.findall(r"^COPY (?!--)(.+)$", stage, re.MULTILINE):
        *sources, target = line.split()
        for source in map(ROOT.joinpath, sources):
            copied = tmp_path / target.removeprefix("/app/")
            if source.is_dir():
                shutil.copytree(source, copied)
            else:
                copied.mkdir(exist_ok=True)
                shutil.copy(source, copied)
    done = subprocess.run(
        [sys.executable, "-c", "import disagg_operator.__main__"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
