"""A node with a pod comes up and goes without a trace, beside whatever cluster runs on the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cluster
@pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root")
def test_a_cluster_with_a_pod_leaves_nothing_behind():
    script = Path(__file__).with_name("whole_cluster.py")
    answer = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
