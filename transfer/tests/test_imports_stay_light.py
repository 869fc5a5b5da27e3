"""What a process must not load, because of its size or because it would clash with NIXL's UCX."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("disagg_transfer.contract", {"msgspec", "numpy", "aiohttp", "disagg_transfer.errors"}),
        ("disagg_transfer.client", {"numpy", "torch", "aiohttp", "xxhash", "nixl_cu13"}),
        ("disagg_transfer.agent.core", {"torch", "kopf", "kubernetes", "nixl"}),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module, unwanted):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert module in loaded
    assert not unwanted & set(loaded)
