"""Keeps the standard library's `operator` while pytest imports tests under operator/.

In importlib mode pytest names such a test `operator.tests.NAME` and imports the parents first; a
parent without `__path__` it replaces in `sys.modules` by a namespace package, and everything that
imports `operator` later fails. With a `__path__` the real module stays.
"""

import operator

from hypothesis import settings

operator.__path__ = []  # type: ignore[attr-defined]

# No property is timed: these machines are shared, and a slow example is no wrong one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
