"""UCX's own output, kept in memory so that the tables of protocols it prints can be read.

UCX writes to the file that UCX_LOG_FILE names when its library is loaded, once per process; here
that is a memfd. Its warnings then no longer reach standard error, so whoever drains hands them on.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, MutableMapping
from typing import Final

LOG_FILE: Final = "UCX_LOG_FILE"
PROTO_INFO: Final = "UCX_PROTO_INFO"
_PUNCH_HOLE_KEEP_SIZE: Final = 0x3
_MAX_DRAIN_BYTES: Final = 1 << 20
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class UcxLog:
    """`obstacle` says why there is nothing to read, and is empty when there is."""

    def __init__(self, env: MutableMapping[str, str]) -> None:
        self._env = env
        told = {name: env[name] for name in (LOG_FILE, PROTO_INFO) if name in env}
        told = {name: value for name, value in told.items() if (name, value) != (PROTO_INFO, "y")}
        settings = ", ".join(f"{name}={value}" for name, value in told.items())
        self.obstacle = f"{settings} is set, so what UCX chose cannot be read" if told else ""
        self._fd = -1 if told else os.memfd_create("disagg-ucx-log", os.MFD_CLOEXEC)
        self._position = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """While UCX is loaded and its contexts are made; child processes must not see it."""
        names = {} if self.obstacle else {LOG_FILE: f"/proc/self/fd/{self._fd}", PROTO_INFO: "y"}
        added = {name: value for name, value in names.items() if name not in self._env}
        self._env.update(added)
        try:
            yield
        finally:
            for name in added:
                del self._env[name]

    def drain(self) -> str:
        """What UCX has printed since; its memory is given back."""
        if self._fd < 0:
            return ""
        _libc.fflush(None)  # UCX leaves its lines in the C library's buffer
        data = os.pread(self._fd, _MAX_DRAIN_BYTES, self._position)
        self._position += len(data)
        if data:
            _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, 0, self._position)
        return data.decode(errors="replace")
