"""Writes the page of a run while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from syvla.durable_files import write_text

from .run_page import Example, RunPage

logger = logging.getLogger(__name__)

PAGE = "index.html"
LARGEST_SHARE = 0.01
"""Of the run's time that writing may take: after a page that took a second, the next is written after 100 at the earliest."""


class RunPageCallback(TrainerCallback):
    """Rewrites `index.html` in the output folder after log lines, on the first process alone.

    A page that cannot be written is a warning, never the end of a run.

    Args:
        facts: Tables by heading, asked for once when training begins.
        datasets: Rows of the table of data.
        examples: Reads what the model sees of a few rows, once when training begins.
        clock: Seconds.
    """

    def __init__(
        self,
        facts: Callable[[], Mapping[str, Mapping[str, Any]]] = dict,
        datasets: Sequence[Mapping[str, Any]] = (),
        examples: Callable[[], Sequence[Example]] = tuple,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._read_facts, self._read_examples, self._datasets, self._clock = facts, examples, datasets, clock
        self._facts: Mapping[str, Mapping[str, Any]] = {}
        self._examples: Sequence[Example] = ()
        self._begun = self._end = self._written_at = clock()
        self._first_step, self._spent, self._last_cost = 0, 0.0, 0.0
        self._state = "running"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._begun, self._first_step, self._state = self._clock(), state.global_step, "running"
        self._spent = 0.0
        try:
            self._facts, self._examples = self._read_facts(), self._read_examples()
        except Exception as error:  # a courtesy: whatever is wrong with a row is said again where it matters
            logger.warning("%s: what the model sees cannot be shown (%r)", PAGE, error)
        self._write(args, state)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = self._clock() - self._written_at >= self._last_cost / LARGEST_SHARE
        if state.is_world_process_zero and (due or self._state != "running"):
            self._write(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._state, self._end = "finished", self._clock()
        if state.is_world_process_zero:
            self._write(args, state)

    @contextmanager
    def ending_said(self, trainer: Any) -> Iterator[None]:
        """The page says by which error a run inside the block ended before its time."""
        try:
            yield
        except BaseException as error:
            if trainer.state.is_world_process_zero and self._state == "running" and trainer.state.max_steps:
                self._state, self._end = f"ended by {type(error).__name__}: {error}"[:500], self._clock()
                self._write(trainer.args, trainer.state)
            raise

    def _write(self, args: Any, state: Any) -> None:
        began = self._clock()
        now = began if self._state == "running" else self._end
        steps, seconds = state.global_step - self._first_step, now - self._begun
        left = seconds / steps * (state.max_steps - state.global_step) if steps else None
        page = RunPage(
            title=Path(args.output_dir).resolve().name,
            step=state.global_step,
            max_steps=state.max_steps,
            history=state.log_history,
            state=self._state,
            seconds_left=left if self._state == "running" else None,
            writing_share=self._spent / max(seconds, 1e-9),
            examples=self._examples,
            facts=self._facts,
            datasets=self._datasets,
        )
        try:
            write_text(Path(args.output_dir) / PAGE, page.render())
        except Exception as error:
            logger.warning("%s could not be written: %r", PAGE, error)
        self._written_at = self._clock()
        self._last_cost = self._written_at - began
        self._spent += self._last_cost
