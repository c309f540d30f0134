"""Fetches the files that a sampler's next batches need, in the order of their use, while earlier batches are trained on."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import Sampler

logger = logging.getLogger(__name__)

THREADS = 4
WINDOW_SHARE = 0.5  # of the cache that files of coming batches may take; the rest is for those in use and just used


class _Files(Protocol):
    """What the plan needs of a dataset's files, see `StreamedFiles`."""

    planned: bool

    def fetch_ahead(self, name: str) -> None: ...

    def size(self, name: str) -> int: ...


class StreamedDataset(Protocol):
    """A dataset whose samples need files."""

    files: _Files

    def files_of(self, index: int) -> Sequence[str]:
        """Names of the files that a sample needs, in the order of their use."""
        ...


class LookAheadBatchSampler(Sampler[list[tuple[int, ...]]]):
    """A batch sampler that fetches the files of its coming batches; order and position are the sampler's own.

    The sampler is copied to look ahead, so its state is that of the batches that were handed out.

    Args:
        sampler: Batches of (dataset number, index, ...).
        datasets: Dataset number -> streamed dataset.
        window: Bytes of files of coming batches that are held at most.
        skipped: Batches of the first pass that a resumed run skips, so their files are not fetched.
        in_flight: Batches that are handed out before they are read, as to the workers of a data loader.
        threads: Downloads at once.
    """

    def __init__(
        self,
        sampler: Any,
        datasets: dict[int, StreamedDataset],
        window: int,
        *,
        skipped: int = 0,
        in_flight: int = 0,
        threads: int = THREADS,
    ) -> None:
        self.sampler, self.datasets, self.window = sampler, datasets, window
        self._skipped, self._in_flight, self._threads = skipped, in_flight, threads
        for dataset in datasets.values():
            dataset.files.planned = True

    @property
    def batch_size(self) -> int:
        size: int = self.sampler.batch_size
        return size

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.sampler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        skipped, self._skipped = self._skipped, 0
        prefetcher = Prefetcher(self._plan(copy.deepcopy(self.sampler), skipped), self.window, self._threads)
        try:
            for number, batch in enumerate(self.sampler):
                prefetcher.advance(number - self._in_flight)
                yield batch
        finally:
            prefetcher.stop()

    def _plan(self, sampler: Any, skipped: int) -> Iterator[tuple[int, list[tuple[_Files, str]]]]:
        for number, batch in enumerate(sampler):
            if number < skipped:
                continue
            wanted = {
                (self.datasets[source].files, name): None
                for source, index, *_ in batch
                if source in self.datasets
                for name in self.datasets[source].files_of(index)
            }
            yield number, list(wanted)


class Prefetcher:
    """Threads that fetch files of a plan while the bytes of all that are planned and not yet used fit into a window.

    A file that cannot be fetched is left to whoever needs it, who then meets the error.

    Args:
        plan: (number of the batch, its files), batch by batch.
        window: Bytes.
        threads: Downloads at once.
    """

    def __init__(
        self, plan: Iterable[tuple[int, list[tuple[_Files, str]]]], window: int, threads: int = THREADS
    ) -> None:
        self._plan, self._window = plan, window
        self._last_use: dict[tuple[_Files, str], int] = {}
        self._sizes: dict[tuple[_Files, str], int] = {}
        self._bytes, self._current = 0, -1
        self._queue: deque[tuple[int, tuple[_Files, str]]] = deque()
        self._stopped = False
        self._changed = threading.Condition()
        targets = [self._run_plan, *[self._run_downloads] * threads]
        self._workers = [threading.Thread(target=target, daemon=True, name="prefetch") for target in targets]
        for thread in self._workers:
            thread.start()

    def advance(self, number: int) -> None:
        """Says that a batch is being used; what only batches before it needed leaves the window."""
        with self._changed:
            self._current = number
            for key in [key for key, last in self._last_use.items() if last < number]:
                del self._last_use[key]
                self._bytes -= self._sizes.pop(key)
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends the threads; a download under way is finished first, in the background."""
        with self._changed:
            self._stopped = True
            self._queue.clear()
            self._changed.notify_all()

    def _run_plan(self) -> None:
        for number, files in self._plan:
            for key in files:
                try:
                    size = key[0].size(key[1])
                except OSError as error:
                    logger.debug("%s: not fetched ahead (%s)", key[1], error)
                    continue
                with self._changed:
                    while not self._stopped and not self._fits(key, size, number):
                        self._changed.wait()
                    if self._stopped:
                        return
                    if key not in self._last_use:
                        self._bytes += size
                        self._sizes[key] = size
                    self._last_use[key] = number
                    self._queue.append((number, key))
                    self._changed.notify_all()

    def _fits(self, key: tuple[_Files, str], size: int, number: int) -> bool:
        """Whether a file may be fetched now; that of the batch in use always, and one ahead of an empty window."""
        return key in self._last_use or number <= self._current or not self._bytes or self._bytes + size <= self._window

    def _run_downloads(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and not self._queue:
                    self._changed.wait()
                if self._stopped:
                    return
                number, (files, name) = self._queue.popleft()
                if number < self._current:
                    continue
            try:
                files.fetch_ahead(name)
            except OSError as error:
                logger.debug("%s: not fetched ahead (%s)", name, error)
