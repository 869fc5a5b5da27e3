"""An engine's process that ends gives its arena memory back; the kernel tells the agent."""

import subprocess
import sys
import textwrap

import pytest

from disagg_transfer.local import LocalAgent

ENGINE = textwrap.dedent(
    """
    import sys
    from disagg_transfer.client import AgentClient, Component
    kv = Component(
        name="kv", state_type="kv", item_bytes=4096, layers=1, dtype="uint8", page_size=16
    )
    client = AgentClient.connect(
        sys.argv[1], role="prefill", model="tiny", components=[kv], page_size=16, timeout_s=10
    )
    client.begin(1)
    extent = client.reserve(1, 4096, timeout_s=1)
    print("writing", flush=True)
    sys.stdin.readline()
    client.close()  # and still has the view that it writes to
    sys.stdin.read()
    """
)


@pytest.fixture
def prefill(tmp_path):
    with LocalAgent(tmp_path, role="prefill") as agent:
        yield agent


@pytest.fixture
def engine(prefill):
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE, prefill.socket_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"writing\n"
        yield process
        process.kill()


def test_what_a_killed_engine_was_writing_is_free_without_another_engine(prefill, engine, kit):
    assert prefill.report().arena.used == 4096
    engine.kill()
    kit.until(lambda: prefill.report().arena.used == 0)
    assert not prefill.report().engine.connected


def test_what_a_cut_off_engine_is_writing_stays_out_of_reach_until_it_ends(prefill, engine, kit):
    engine.stdin.write(b"cut\n")
    engine.stdin.flush()
    kit.until(lambda: prefill.report().arena.unsettled == 4096)
    newer = kit.connect(prefill, "prefill", (kit.part("kv"),))
    assert prefill.report().arena.unsettled == 4096
    engine.kill()
    kit.until(lambda: prefill.report().arena.used == 0)
    newer.close()
