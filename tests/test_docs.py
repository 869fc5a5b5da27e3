"""The docs name what the code can say."""

from pathlib import Path

import pytest

from disagg_operator import names
from disagg_transfer import contract
from disagg_transfer.agent.metrics import Metrics
from disagg_transfer.contract import Cause, NotReady, Stage

DOCS = Path(__file__).resolve().parents[1] / "docs"
STATUS = (DOCS / "status.md").read_text()
DESIGN = (DOCS / "design.md").read_text()


@pytest.mark.parametrize(
    "word",
    sorted(
        value
        for name, value in vars(names).items()
        if name.startswith(("REASON_", "EVENT_")) and isinstance(value, str)
    ),
)
def test_every_reason_is_explained(word):
    assert f"`{word}`" in STATUS


@pytest.mark.parametrize("word", sorted({*Cause, *NotReady}))
def test_every_cause_is_explained(word):
    assert f"`{word}`" in STATUS


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_is_explained(stage):
    assert f"| `{stage}` |" in DESIGN


def test_the_ports_to_guard_are_those_that_there_are():
    text = (DOCS / "security.md").read_text()
    first, last = contract.DATA_PORTS
    for port in (contract.CONTROL_PORT, contract.HTTP_PORT, f"{first}-{last}"):
        assert f"| {port}/TCP, " in text


@pytest.mark.parametrize("name", sorted(Metrics(()).names))
def test_every_series_is_explained(name):
    assert f"`{name.removeprefix('disagg_agent_')}`" in (DOCS / "agent-cli.md").read_text()
