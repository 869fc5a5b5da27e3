"""The main job in real pods: tokens that came through the transfer equal those of one process."""

import pytest

from disagg_scenarios import demo

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def applied(kubectl):
    for model in demo.MODELS:
        kubectl.run("apply", "-f", str(demo.EXAMPLES / f"{model}.yaml"))
    return kubectl


@pytest.mark.parametrize("model", demo.MODELS)
def test_tokens_through_the_router_equal_one_process(applied, model):
    line = demo.serve(applied, model)
    assert line.startswith(f"ok {model}: 24/24 tokens equal")


def test_kubectl_wait_and_the_columns_tell_that_it_serves(applied):
    applied.run("wait", "ddep", "--all", "--for=condition=Ready", "--timeout=5s")
    header, *rows = applied.run("get", "ddep").strip().splitlines()
    assert header.split() == [
        "NAME", "READY", "PREFILL", "DECODE", "TRANSFER", "TRANSPORT", "REASON", "AGE",
    ]  # fmt: skip
    for row in rows:
        assert row.split()[1:6] == ["True", "1/1", "1/1", "True", "tcp"]
