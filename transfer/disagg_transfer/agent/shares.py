"""How much of prefill's arena the requests of one decode pod may hold while others want some."""

from collections.abc import Callable

from disagg_transfer.agent.lease import Lease
from disagg_transfer.agent.leasebook import LeaseBook
from disagg_transfer.agent.storage import Storage
from disagg_transfer.contract import ENV_ARENA_BYTES, ENV_CREDITS
from disagg_transfer.limits import CreditLimits


class Shares:
    def __init__(
        self,
        book: LeaseBook,
        *,
        storage: Storage,
        limits: CreditLimits,
        decoders: Callable[[], int],  # decode pods with an engine
    ) -> None:
        self._book, self._storage = book, storage
        self._limits, self._decoders = limits, decoders

    def allow(self, lease: Lease, nbytes: int) -> bool:
        """A decode pod that holds nothing may always have one chunk, however large."""
        held = self._held_with(lease)
        return not held or held + nbytes <= self._limits.share * self._storage.memory.size

    async def wait(self, lease: Lease, nbytes: int) -> None:
        """Until it is allowed, without limit; not in the way of other pods' requests."""
        while not self.allow(lease, nbytes):
            await self._storage.freed.wait()

    def short_of(self, lease: Lease, nbytes: int) -> str:
        """What a request for so many bytes waits for, and what to set."""
        size, storage = self._storage.memory.size, self._storage
        if not self.allow(lease, nbytes):
            return (
                f"decode pod {lease.decode_pod} holds {self._held_with(lease)} of the "
                f"arena's {size} bytes, and its share is {self._limits.share:.0%} while there are "
                f"{self._decoders()} decode pods ({ENV_CREDITS})"
            )
        return (
            f"{storage.used} of the arena's {size} bytes are in use, {storage.unsettled} of them "
            f"unsettled ({ENV_ARENA_BYTES})"
        )

    def _held_with(self, lease: Lease) -> int:
        """By every request of the decode pod that claims this one; 0 while it is the only one."""
        if not lease.claims or self._decoders() < 2:
            return 0
        pod = lease.decode_pod
        return sum(other.held_bytes for other in self._book.leases if other.decode_pod == pod)
