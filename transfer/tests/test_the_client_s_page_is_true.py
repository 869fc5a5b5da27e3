"""docs/client.md: its example runs as it stands there, against two real agents."""

import re
from pathlib import Path

from disagg_transfer.local import LocalAgent

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text()


def example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return code


def test_the_example_moves_a_request_between_two_agents(tmp_path):
    with LocalAgent(tmp_path / "p", role="prefill") as prefill:
        peer = f"127.0.0.1:{prefill.control_port}"
        with LocalAgent(tmp_path / "d", role="decode", peers=[peer]) as decode:
            names = {
                "prefill_socket": prefill.socket_path,
                "decode_socket": decode.socket_path,
                "peer": peer,
            }
            exec(compile(example(), "docs/client.md", "exec"), names)
            assert names["first_token"] == b"first token"
            assert names["memory"] == {
                ("kv", 0): bytes([1]) * 8192,
                ("kv", 2): bytes([2]) * 8192,
                ("ssm", 0): bytes(64),
            }
            names["p"].close()
            names["d"].close()


def test_the_example_is_short_enough_to_read():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 30
