"""`python -m disagg_faults --seed N --requests N`: a fault campaign, exit 1 on a violation.

It prints its seed, a line per 50 requests and what became of them; on a violation the seed, the
step and the end of every log. The same seed makes the same plan again.
"""

import argparse
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from disagg_faults.campaign import run_campaign
from disagg_faults.errors import FaultsError
from disagg_faults.plan import make_plan

_REQUESTS: Final = 500


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="disagg_faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--requests", type=int, default=_REQUESTS)
    parser.add_argument(
        "--from-step", type=int, default=1, metavar="N", help="leave out what is before"
    )
    parser.add_argument("--plan", action="store_true", help="print the steps and do nothing")
    parser.add_argument("--verbose", action="store_true", help="print every step as it begins")
    words = parser.parse_args(argv)
    if words.plan:
        for step in make_plan(seed=words.seed, requests=words.requests):
            print(step)
        return 0
    # Ended by a signal, namespaces and processes are ended too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            tally = run_campaign(
                seed=words.seed,
                requests=words.requests,
                folder=Path(folder),
                say=lambda line: print(line, flush=True),
                from_step=words.from_step,
                verbose=words.verbose,
            )
        except FaultsError as error:
            print(f"disagg_faults: {error}", file=sys.stderr)
            return 1
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())
