"""The models this engine serves: four tiny ones by name, or any checkpoint folder.

The tiny ones are the real model classes with random weights. Their settings are chosen so that
every state type decides tokens (a test zeroes each): wide weights, slow decay of the recurrent
state, a window and an index_topk of 16, shorter than any prompt worth testing.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from disagg_engine.errors import UnknownModelError
from disagg_engine.tokenizer import ByteTokenizer, CheckpointTokenizer, NoTokenizer, Tokenizer

TINY_WINDOW = 16
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Uniform in +-0.26 has the standard deviation 0.15: narrower weights let random models forget
# their state, and a zeroed payload would go unnoticed.
WEIGHT_BOUND = 0.26
SLOW_DECAY = {"A_log": -2.0, "dt_bias": -1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    name: str
    module: Any  # a transformers causal LM
    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    vocab_size: int
    context_tokens: int


def load_model(source: str, *, seed: int) -> LoadedModel:
    """A tiny model by name, or the checkpoint in a local folder."""
    silence_advice()
    # One thread: results are then bit-identical on both sides and in the single process.
    torch.set_num_threads(1)
    if source in TINY_MODELS:
        module = TINY_MODELS[source]()
        fill_weights(module, seed=seed)
        return _loaded(source, module, ByteTokenizer())
    if Path(source).is_dir():
        return _checkpoint(Path(source))
    raise UnknownModelError(
        f"--model is {source!r}: neither a folder here nor one of {', '.join(sorted(TINY_MODELS))}"
    )


def silence_advice() -> None:
    """Transformers logs for every kernel package that a CPU does not need."""
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()


def fill_weights(module: Any, *, seed: int) -> None:
    """Weights from names and seed alone: the same on every torch version and processor.

    torch's own normal distribution is computed differently by CPUs with and without AVX2.
    """
    with torch.no_grad():
        for name, weight in module.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind in SLOW_DECAY:
                weight.fill_(SLOW_DECAY[kind])
            elif weight.dim() > 1:
                weight.copy_(_uniform(f"{seed}/{name}", tuple(weight.shape)))
            elif kind in {"bias", "sinks"}:
                weight.zero_()


def _uniform(label: str, shape: tuple[int, ...]) -> torch.Tensor:
    digest = hashlib.sha256(label.encode()).digest()
    drawn = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
    values = drawn.random(shape, dtype=np.float32)
    return torch.from_numpy((values - np.float32(0.5)) * np.float32(2 * WEIGHT_BOUND))


def _checkpoint(folder: Path) -> LoadedModel:
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return _loaded(folder.name, module, _checkpoint_tokenizer(folder))


def _checkpoint_tokenizer(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return NoTokenizer()
    return CheckpointTokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _loaded(name: str, module: Any, tokenizer: Tokenizer) -> LoadedModel:
    module.eval()
    stop = module.config.eos_token_id
    stops = () if stop is None else (stop,) if isinstance(stop, int) else tuple(stop)
    return LoadedModel(
        name=name,
        module=module,
        tokenizer=tokenizer,
        stop_tokens=frozenset(stops),
        vocab_size=int(module.config.vocab_size),
        context_tokens=int(module.config.max_position_embeddings),
    )


def _qwen3_next() -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        **TINY_SHAPE,
        num_hidden_layers=4,
        layer_types=["linear_attention", "full_attention"] * 2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    return Qwen3NextForCausalLM(config)


def _gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        **TINY_SHAPE,
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        sliding_window=TINY_WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return GptOssForCausalLM(config)


def _deepseek_v32() -> Any:
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    config = DeepseekV32Config(
        **TINY_SHAPE,
        num_hidden_layers=4,
        num_key_value_heads=4,
        intermediate_size=128,
        kv_lora_rank=32,
        q_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_topk=TINY_WINDOW,
        index_head_dim=32,
        index_n_heads=2,
        first_k_dense_replace=1,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
    )
    return DeepseekV32ForCausalLM(config)


def _nemotron_h() -> Any:
    from transformers import NemotronHConfig, NemotronHForCausalLM

    config = NemotronHConfig(
        **TINY_SHAPE,
        layers_block_type=[
            *("linear_attention", "full_attention", "linear_attention"),
            *("mlp", "full_attention", "linear_attention"),
        ],
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=128,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=16,
        n_groups=2,
        chunk_size=32,
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
    )
    return NemotronHForCausalLM(config)


TINY_MODELS: dict[str, Callable[[], Any]] = {
    "tiny-qwen3-next": _qwen3_next,
    "tiny-gpt-oss": _gpt_oss,
    "tiny-deepseek-v32": _deepseek_v32,
    "tiny-nemotron-h": _nemotron_h,
}
