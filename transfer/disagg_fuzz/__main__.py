"""`python -m disagg_fuzz --seconds 60`: mutate valid inputs, keep what breaks a parser.

Finds go to transfer/tests/corpus/TARGET/, where a test replays them for ever; the exit status is
1 if there were any.
"""

import argparse
import hashlib
import re
import sys
import time
from pathlib import Path
from random import Random

from disagg_fuzz.hunt import Find, watch
from disagg_fuzz.mutate import mutate
from disagg_fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parent.parent / "tests" / "corpus"


def main() -> int:
    words = _parser().parse_args()
    chosen = [target for target in TARGETS if words.target in (None, target.name)]
    rng = Random(words.seed)
    print(f"seed {words.seed}, {words.seconds:g} s, {', '.join(t.name for t in chosen)}")
    deadline = time.monotonic() + words.seconds
    tried, finds = 0, set[str]()
    while time.monotonic() < deadline:
        target = rng.choice(chosen)
        find = watch(target, mutate(rng, rng.choice(_inputs(target))))
        tried += 1
        kind = re.sub(r"\d+", "N", f"{find.target} {find.what:.60}") if find else ""
        if find is not None and kind not in finds:  # the first of its kind is enough
            finds.add(kind)
            print(f"{find.target}: {find.what}\n  kept as {_keep(find)}")
    print(f"{tried} inputs, {len(finds)} finds")
    return 1 if finds else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="disagg_fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--target", choices=[target.name for target in TARGETS])
    return parser


def _inputs(target: Target) -> tuple[bytes, ...]:
    kept = (path.read_bytes() for path in sorted((CORPUS / target.name).glob("*.bin")))
    return (*target.seeds, *kept)


def _keep(find: Find) -> Path:
    folder = CORPUS / find.target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(find.data).hexdigest()[:12]}.bin"
    path.write_bytes(find.data)
    return path


if __name__ == "__main__":
    sys.exit(main())
