"""What only a GPU can show: pools of an engine on it, with the arena in host memory or beside them."""

import pytest
import torch

from disagg_transfer.client import AgentClient
from disagg_transfer.contract import ENV_ARENA_MEMORY
from disagg_transfer.engines import cuda
from disagg_transfer.engines.pages import Pages
from disagg_transfer.local import LocalAgent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
ITEMS, PAGE = 24, 8448


@pytest.fixture(params=["host", "device"])
def agents(request, tmp_path, kit):
    env = {ENV_ARENA_MEMORY: request.param}
    with LocalAgent(tmp_path / "p", role="prefill", env=env) as prefill:
        peers = [f"127.0.0.1:{prefill.control_port}"]
        with LocalAgent(tmp_path / "d", role="decode", peers=peers, env=env) as decode:
            yield prefill, decode


def pools(fill):
    shape = (3 * ITEMS, PAGE)
    if fill:
        return [torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda") for _ in range(3)]
    return [torch.zeros(shape, dtype=torch.uint8, device="cuda") for _ in range(3)]


def connect(agent, role, kit):
    return AgentClient.connect(
        agent.socket_path,
        role=role,
        model="tiny",
        components=(kit.part("kv", 3 * PAGE),),
        page_size=16,
        timeout_s=30,
        on_gpu=cuda.DeviceArena,
    )


def test_pages_of_one_gpu_pool_arrive_in_another_s(agents, kit, rooms):
    prefill, decode = agents
    p, d = connect(prefill, "prefill", kit), connect(decode, "decode", kit)
    kit.until(lambda: decode.report().ready, within_s=60)
    sent, taken = pools(fill=True), pools(fill=False)
    ours = torch.randperm(3 * ITEMS, device="cuda")[:ITEMS]
    theirs = torch.randperm(3 * ITEMS, device="cuda")[:ITEMS]
    room, peer = next(rooms), f"127.0.0.1:{prefill.control_port}"
    gathering, scattering = Pages(sent), Pages(taken)
    p.begin(room)
    for first in (0, ITEMS // 2):
        part = ours[first : first + ITEMS // 2]
        extent = p.reserve(room, len(part) * gathering.item_bytes, timeout_s=10)
        gathering.gather(part, extent.memory)
        last = first > 0
        p.offer(room, "kv", extent, items=len(part), first=first, final=last, last=last)
    with d.stream(room, peer=peer, expect={"kv": ITEMS}) as chunks:
        for chunk in chunks:
            there = theirs[chunk.first : chunk.first + chunk.items]
            scattering.scatter(there, chunk.memory)
    p.wait_released(room, 10)
    for one, other in zip(sent, taken, strict=True):
        assert torch.equal(one[ours], other[theirs])
    p.close()
    d.close()


def test_a_pinned_host_arena_is_copied_to_and_from_as_any():
    pool, items = pools(fill=True)[0], torch.tensor([5, 2], device="cuda")
    view = memoryview(bytearray(2 * PAGE + 4096))[: 2 * PAGE]
    with cuda.pinned(view, device=pool.device):
        Pages([pool]).gather(items, view)
    assert bytes(view) == pool[items].cpu().numpy().tobytes()
