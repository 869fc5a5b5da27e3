"""One process, one plain cache, no pools and no agents: what disaggregated serving must equal."""

import argparse
import json
import sys
from collections.abc import Sequence

from disagg_engine.models import load_model
from disagg_engine.runner import ModelRunner
from disagg_engine.sampling import Sampling, pick_token


def complete(runner: ModelRunner, prompt: Sequence[int], sampling: Sampling) -> list[int]:
    cache, logits = runner.prefill(prompt)
    first = pick_token(logits, sampling, position=0)
    tokens = runner.continuation(first, cache, sampling, check=lambda: None)
    return [token.id for token in tokens]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m disagg_engine.monolith", description=__doc__)
    parser.add_argument("--model", required=True, help="a tiny model's name, or a folder")
    parser.add_argument("--seed", type=int, default=0, help="of a tiny model's weights")
    parser.add_argument("--input-ids", required=True, help="token ids with commas between")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of ids")
    args = parser.parse_args(argv)
    prompt = [int(token) for token in args.input_ids.split(",")]
    sampling = Sampling(max_new_tokens=args.max_new_tokens, temperature=0, ignore_eos=True)
    tokens = complete(ModelRunner(load_model(args.model, seed=args.seed)), prompt, sampling)
    answer = json.dumps({"model": args.model, "seed": args.seed, "output_ids": tokens})
    sys.stdout.write(f"{answer if args.json else ','.join(map(str, tokens))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
