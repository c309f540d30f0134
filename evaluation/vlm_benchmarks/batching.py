"""Batches of prompts of similar length, prepared ahead of the model by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of `size` items, the last one shorter."""
    window: list[T] = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def token_budget_batches(lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Indices in batches, longest first, so that little is padding.

    A batch holds at most `max_rows` rows and, padding counted, `max_tokens` tokens; a row that is longer stands alone.

    Args:
        lengths: Tokens of each row, with what is to be generated.
        max_rows: At least 1.
        max_tokens: Budget of rows x longest row.
    """
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * width <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = lengths[index]
    return batches


def prefetch(items: Iterable[T], prepare: Callable[[T], Iterable[R]], ahead: int = 2) -> Iterator[R]:
    """What `prepare` makes of every item, computed in a thread at most `ahead` results before they are taken.

    An error of the thread is raised here, in place of the result that failed. Closing the iterator ends the thread.
    """
    results: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stopped.is_set():
            try:
                results.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                for result in prepare(item):
                    if not put("result", result):
                        return
            put("end", None)
        except BaseException as error:  # raised where the results are taken
            put("error", error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = results.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
