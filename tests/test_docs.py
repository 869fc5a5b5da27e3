"""The docs name what the code can say."""

from pathlib import Path

import pytest
import yaml

from disagg_operator import names
from disagg_transfer import contract
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


def test_the_network_policy_names_the_ports_and_labels_that_there_are():
    text = (DOCS / "security.md").read_text()
    policy = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    rules = policy["spec"]["ingress"]
    ports = [(p["port"], p.get("endPort", p["port"])) for rule in rules for p in rule["ports"]]
    alone = (contract.CONTROL_PORT, contract.HTTP_PORT, contract.ENGINE_PORT)
    assert sorted(ports) == sorted([*((port, port) for port in alone), contract.DATA_PORTS])
    keys = set(policy["spec"]["podSelector"]["matchLabels"])
    assert keys == {names.LABEL_DEPLOYMENT, names.LABEL_ROLE}
    assert {
        rule["from"][0].get("podSelector", {"matchLabels": {}})["matchLabels"].get(names.LABEL_ROLE)
        for rule in rules
    } == {names.DECODE, names.ROUTER, None}
