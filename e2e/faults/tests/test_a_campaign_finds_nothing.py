"""Real agents, engines and networks under random faults; `python -m disagg_faults` for longer."""

import pytest

from disagg_faults.campaign import run_campaign
from disagg_faults.net import obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "can be made")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [705])
def test_every_request_is_exact_or_failed_with_a_cause(tmp_path, seed):
    lines = []
    tally = run_campaign(seed=seed, requests=90, folder=tmp_path, say=lines.append)
    assert not tally.violations, "\n".join(lines)
    assert tally.requests == 90
    assert (tally.hangs, tally.leaks, tally.wrong) == (0, 0, 0)
    assert tally.exact + tally.failed == 90
    assert min(tally.exact, tally.failed) > 10  # the faults struck, and not everything
    assert lines[0] == f"campaign: seed {seed}, 90 requests"
