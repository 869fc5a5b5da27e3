"""Paged pools: where a request's cache lives between the model and the agent's arena.

A pool is one tensor of 64-bit words [pages, words of an item]. Pages of a request are scattered
over it on purpose, as in any engine that serves many requests, so that gather and scatter are
exercised on every transfer.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from disagg_engine.errors import BadRequestError, OverloadedError
from disagg_engine.layout import WORD_BYTES, ComponentLayout, Field
from disagg_transfer.engines.pages import Pages as Rows

Pages = torch.Tensor  # indices of one request's pages in one pool, in token order


class PagePool:
    """The pages of one component. Not thread-safe: PoolSet takes and returns under its lock."""

    def __init__(self, layout: ComponentLayout, *, pages: int, shuffle_seed: int) -> None:
        self.layout = layout
        self.capacity = pages
        self._words = torch.zeros((pages, layout.item_bytes // WORD_BYTES), dtype=torch.int64)
        self._rows = Rows([self._words])
        self._order = torch.Generator().manual_seed(shuffle_seed)
        self._free = torch.randperm(pages, generator=self._order)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> Pages:
        drawn = torch.randperm(len(self._free), generator=self._order)
        taken = self._free[drawn[:count]]
        self._free = self._free[drawn[count:]]
        return taken

    def give_back(self, pages: Pages) -> None:
        self._free = torch.cat([self._free, pages])

    def column(self, field: Field) -> torch.Tensor:
        """One field's part of every page: [pages, tokens of a page * values of a token]."""
        start = 0
        for other in self.layout.fields:
            size = other.nbytes * max(self.layout.page_size, 1)
            if other is field:
                return self._words.view(torch.uint8)[:, start : start + size].view(field.dtype)
            start += size
        raise KeyError(field)

    def gather(self, pages: Pages, out: memoryview) -> None:
        """Copy the pages into arena memory."""
        self._rows.gather(pages, out)

    def scatter(self, pages: Pages, payload: memoryview) -> None:
        """Copy arena memory into the pages."""
        self._rows.scatter(pages, payload)


class PoolSet:
    """One pool per component; a request takes pages of all of them or of none."""

    def __init__(
        self,
        layouts: Sequence[ComponentLayout],
        *,
        max_pages: int,
        max_slots: int,
        shuffle_seed: int = 0,
    ) -> None:
        self.layouts = tuple(layouts)
        self._pools = {
            layout.name: PagePool(
                layout,
                pages=max_pages if layout.page_size else max_slots,
                shuffle_seed=shuffle_seed,
            )
            for layout in layouts
        }
        self._returned = threading.Condition()

    def __getitem__(self, component: str) -> PagePool:
        return self._pools[component]

    def check_fits(self, prompt_tokens: int) -> None:
        """A prompt that no amount of waiting makes fit is the client's to shorten."""
        for layout in self.layouts:
            needed, capacity = layout.items(prompt_tokens), self._pools[layout.name].capacity
            if needed > capacity:
                raise BadRequestError(
                    "prompt length",
                    prompt_tokens,
                    f"it needs {needed} pages of {layout.name}, the pool has {capacity}:"
                    " shorten the prompt or raise --max-pages",
                )

    @contextmanager
    def hold(self, prompt_tokens: int, *, timeout_s: float) -> Iterator[Mapping[str, Pages]]:
        """Pages for one prompt, returned on exit."""
        pages = self._take(prompt_tokens, timeout_s=timeout_s)
        try:
            yield pages
        finally:
            with self._returned:
                for name, taken in pages.items():
                    self._pools[name].give_back(taken)
                self._returned.notify_all()

    def _take(self, prompt_tokens: int, *, timeout_s: float) -> dict[str, Pages]:
        needs = {layout.name: layout.items(prompt_tokens) for layout in self.layouts}
        deadline = time.monotonic() + timeout_s
        with self._returned:
            while short := [name for name, need in needs.items() if self[name].free < need]:
                if not self._returned.wait(deadline - time.monotonic()):
                    raise OverloadedError(
                        f"no free pages of {', '.join(short)} within {timeout_s:g} s:"
                        " retry later, or raise --max-pages and --max-slots"
                    )
            return {name: self[name].take(need) for name, need in needs.items()}
