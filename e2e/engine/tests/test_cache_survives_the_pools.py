"""A cache written to pages, gathered, scattered and rebuilt elsewhere decodes the same tokens."""

import pytest
import torch

from disagg_engine.monolith import complete
from disagg_engine.pools import PoolSet
from disagg_engine.sampling import pick_token
from disagg_engine.transcribe import rebuild_cache, store_cache


def gather_all(pools, pages):
    payloads = {}
    for layout in pools.layouts:
        taken = pages[layout.name]
        payloads[layout.name] = bytearray(len(taken) * layout.item_bytes)
        pools[layout.name].gather(taken, memoryview(payloads[layout.name]))
    return payloads


def hand_over(built, prompt, *, spoil=lambda payloads: None):
    """Prefill with one set of pools, decode with another; bytes are all that crosses."""
    runner, layouts, count = built.runner, built.layouts, len(prompt)
    near = PoolSet(layouts, max_pages=32, max_slots=4, shuffle_seed=1)
    far = PoolSet(layouts, max_pages=32, max_slots=4, shuffle_seed=2)
    cache, logits = runner.prefill(prompt)
    first = pick_token(logits, built.greedy, position=0)
    with near.hold(count, timeout_s=0) as pages:
        store_cache(cache, near, pages, prompt_tokens=count)
        payloads = gather_all(near, pages)
    spoil(payloads)
    with far.hold(count, timeout_s=0) as pages:
        for name, payload in payloads.items():
            far[name].scatter(pages[name], memoryview(payload))
        rebuilt = rebuild_cache(runner.model.module.config, far, pages, prompt_tokens=count)
    tokens = runner.continuation(first, rebuilt, built.greedy, check=lambda: None)
    return [token.id for token in tokens]


def test_every_component_of_the_model_is_found(built, model_name, known_components):
    found = {layout.name: layout.state_type for layout in built(model_name).layouts}
    assert found == known_components


def test_decode_from_pages_equals_one_process(built, model_name):
    model = built(model_name)
    assert hand_over(model, model.prompt) == model.expected


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64])
def test_prompts_of_every_fit_equal_one_process(built, model_name, length):
    model = built(model_name)
    prompt = (model.prompt * 2)[:length]
    assert hand_over(model, prompt) == complete(model.runner, prompt, model.greedy)


def test_a_zeroed_component_changes_the_tokens(built, model_name, component):
    model = built(model_name)

    def zero(payloads):
        payloads[component][:] = bytes(len(payloads[component]))

    tokens = hand_over(model, model.prompt, spoil=zero)
    assert tokens[0] == model.expected[0]
    assert tokens != model.expected


def test_pages_of_one_request_are_scattered(built):
    pools = PoolSet(built("tiny-gpt-oss").layouts, max_pages=64, max_slots=1)
    with pools.hold(160, timeout_s=0) as pages:
        steps = pages["kv"].diff()
    assert not torch.equal(steps, torch.ones_like(steps))
