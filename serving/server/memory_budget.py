"""How much memory requests may take at once, over all clients: messages that come in, that wait, and decoded images.

Limits per message and a bounded queue are not enough: hundreds of connections, each with half a message sent, or small files
that decode to large images, would still fill a machine. Only the event loop uses these classes.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from syvla.serving.contract.requests import RequestError


class MemoryBudget:
    """Bytes that all requests together hold.

    Args:
        limit: Most bytes.

    Attributes:
        used: Bytes at present.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, count: int) -> bool:
        """Counts bytes in and returns True, or returns False if there is no room for them."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give(self, count: int) -> None:
        """Counts bytes out that `take` counted in."""
        self.used -= count

    def refusal(self, count: int) -> RequestError:
        """The error of a request that finds no room for `count` bytes."""
        text = (
            f"memory: expected at most {self.limit} bytes in the requests of all clients, which hold {self.used}; got"
        )
        return RequestError(f"{text} {count} more; try again in 1 s", status=503, cause="memory", retry_after=1)


class Holding:
    """What one request holds; given back at the end of a `with` block."""

    def __init__(self, budget: MemoryBudget, count: int = 0) -> None:
        """Raises RequestError (503) if there is no room for `count` bytes."""
        self._budget, self.count = budget, 0
        self.add(count)

    def add(self, count: int) -> None:
        """Raises RequestError (503) if there is no room."""
        if not self._budget.take(count):
            raise self._budget.refusal(count)
        self.count += count

    def give_back_after(self, work: Future[Any]) -> None:
        """Leaves the bytes counted until `work` is done, where it still uses them when the `with` block ends."""
        if work.done():
            return
        loop, budget, count = asyncio.get_running_loop(), self._budget, self.count
        self.count = 0

        def done(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(budget.give, count)

        work.add_done_callback(done)

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.give(self.count)
        self.count = 0
