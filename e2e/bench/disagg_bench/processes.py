"""What a process costs."""

import os
import time
from pathlib import Path
from typing import Final

# Of a clock of another process (clock_getcpuclockid(3)): what the scheduler gave it.
_SCHEDULED: Final = 2


def cpu_s(pid: int) -> float:
    """Processor time of all its threads so far, also of those that have ended; to the nanosecond."""
    return time.clock_gettime(~pid << 3 | _SCHEDULED)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
