"""The tiny models, built once, and what one process answers."""

from dataclasses import dataclass

import pytest

from disagg_engine.layout import ComponentLayout, probe_layout
from disagg_engine.models import TINY_MODELS, load_model
from disagg_engine.monolith import complete
from disagg_engine.runner import ModelRunner
from disagg_engine.sampling import Sampling

PAGE_SIZE = 16
# Written down rather than found, so that a model which loses a component fails tests by name.
COMPONENTS = {
    "tiny-qwen3-next": {"mamba.conv": "mamba", "mamba.recurrent": "mamba", "kv": "kv"},
    "tiny-gpt-oss": {"swa": "swa", "kv": "kv"},
    "tiny-deepseek-v32": {"kv": "kv", "nsa": "nsa"},
    "tiny-nemotron-h": {"mamba.conv": "mamba", "mamba.recurrent": "mamba", "kv": "kv"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    runner: ModelRunner
    layouts: tuple[ComponentLayout, ...]
    prompt: list[int]
    greedy: Sampling
    expected: list[int]  # the answer of one process


def build(name):
    runner = ModelRunner(load_model(name, seed=0))
    # 43 tokens: longer than window and index_topk (16), and no multiple of the page size.
    prompt = [3 + (7 * i * i + 11 * i) % 500 for i in range(43)]
    greedy = Sampling(max_new_tokens=24, temperature=0, ignore_eos=True)
    return Built(
        runner=runner,
        layouts=probe_layout(runner.model.module, page_size=PAGE_SIZE),
        prompt=prompt,
        greedy=greedy,
        expected=complete(runner, prompt, greedy),
    )


@pytest.fixture(scope="session")
def built():
    """Build each model on first use."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = build(name)
        return made[name]

    return get


def pytest_generate_tests(metafunc):
    names = set(metafunc.fixturenames)
    if {"model_name", "component"} <= names:
        pairs = [(model, part) for model, parts in COMPONENTS.items() for part in parts]
        metafunc.parametrize(("model_name", "component"), pairs)
    elif {"model_name", "state_type"} <= names:
        pairs = [(m, kind) for m, parts in COMPONENTS.items() for kind in set(parts.values())]
        metafunc.parametrize(("model_name", "state_type"), sorted(pairs))
    elif "model_name" in names:
        metafunc.parametrize("model_name", sorted(TINY_MODELS))


@pytest.fixture
def known_components(model_name):
    return COMPONENTS[model_name]
