"""Whether any process still has the arena mapped that one registration was given.

A pipe's write end travels beside the arena's descriptor, and the client closes it when its mapping
is gone: no view, tensor or thread of that process can write there any more. A process that dies
closes it as well, and so the kernel itself tells; what is read here is the pipe's end alone.
"""

import asyncio
import os
from collections.abc import Callable


class Lifeline:
    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.held = True  # by somebody who may write into the arena

    def watch(self, gone: Callable[[], None]) -> None:
        """Call once the write end has been handed over; `gone` is called at the latest end."""
        os.close(self.theirs)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._ours, self._look, loop, gone)

    def _look(self, loop: asyncio.AbstractEventLoop, gone: Callable[[], None]) -> None:
        if os.read(self._ours, 4096):
            return  # nobody is asked to write, and it says nothing
        loop.remove_reader(self._ours)
        os.close(self._ours)
        self.held = False
        gone()
