"""A black hole between two hosts: no error comes back, only silence."""

import pytest

from disagg_faults.blackhole import blackhole_s
from disagg_faults.net import obstacle

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "can be made")


def test_both_engines_know_within_the_heartbeat_limit_and_a_second(tmp_path):
    seconds = blackhole_s(tmp_path, trials=4)
    assert len(seconds) == 4
    # The last sign of life was up to a beat (1 s) before the loss; the limit is 3 s after it.
    assert all(1.9 < found_s <= 4 for found_s in seconds)
