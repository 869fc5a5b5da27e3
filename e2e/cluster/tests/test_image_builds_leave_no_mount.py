"""buildah mounts its storage on itself; a user's cache folder must not stay mounted."""

from pathlib import Path

import pytest

from disagg_cluster.images import build_images
from disagg_cluster.layout import cache_directory
from disagg_cluster.teardown import mounts_below


@pytest.mark.cluster
def test_nothing_of_the_cache_is_mounted_after_a_build():
    build_images()
    table = Path("/proc/self/mounts").read_text(encoding="utf-8")
    assert mounts_below(cache_directory(), table) == []
