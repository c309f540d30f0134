"""How many functions and files a reader follows from one end of a journey to the other: `python -m benchmarks.journeys`.

A journey runs in this process under `sys.setprofile`, warm, and only code of the checkout's packages counts:

- calls: calls of our functions, and resumptions of our coroutines;
- functions: distinct ones; a comprehension belongs to the function that it stands in;
- files: distinct ones;
- changes of file: calls whose file is another than the previous call's, over all threads in order of time. The model is
  one place here: its layers call each other hundreds of times, which a reader follows once.

A journey is a function that prepares what it needs and then records one passage with `trace.passage()`. `JOURNEYS` lists
them; to add one, write such a function, here or in a file beside this one, and put it into the list.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

from benchmarks.rl_journey import rollout_to_policy
from benchmarks.training_journey import row_to_step

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("modeling_syvla", "processing", "training", "evaluation", "serving", "model_cards", "syvla")

MODEL = "modeling_syvla/"

Call = tuple[str, str]
"""(file below the checkout, qualified name of the function)."""


class Trace:
    """Records the calls of our functions.

    Attributes:
        passages: The calls of each passage in order of time.
    """

    def __init__(self) -> None:
        self.passages: list[list[Call]] = []
        self._ends: Callable[[str, str, Any], bool] | None = None
        self._timers: Collection[str] = ()
        self._open: list[Call] | None = None
        self._known: dict[CodeType, Call | None] = {}

    @contextmanager
    def installed(self, *, this_thread: bool) -> Iterator[None]:
        """Watches threads that start inside the block.

        Args:
            this_thread: Watch the calling thread too.
        """
        threading.setprofile(self._event)
        if this_thread:
            sys.setprofile(self._event)
        try:
            yield
        finally:
            threading.setprofile(None)
            if this_thread:
                sys.setprofile(None)

    @contextmanager
    def passage(
        self, ends: Callable[[str, str, Any], bool] | None = None, timers: Collection[str] = ()
    ) -> Iterator[None]:
        """Records what happens inside the block as one passage.

        Args:
            ends: Given (thread's name, event, argument) of every profile event; True ends the passage early.
            timers: Functions that tick by themselves and do not count.
        """
        calls: list[Call] = []
        self._ends, self._timers = ends, timers
        self._open = calls
        try:
            yield
        finally:
            self._open = None
        self.passages.append(calls)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        calls = self._open
        if calls is None:
            return
        if event == "call" and (call := self._ours(frame.f_code)) and call[1] not in self._timers:
            calls.append(call)
        if self._ends is not None and self._ends(threading.current_thread().name, event, argument):
            self._open = None

    def _ours(self, code: CodeType) -> Call | None:
        if code not in self._known:
            path = Path(code.co_filename).resolve()  # `syvla/serving` is a link to `serving`
            inside = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES
            function = code.co_qualname
            while function.endswith(("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")):
                function = function.rpartition(".<locals>.")[0] or "<module>"
            self._known[code] = (str(path.relative_to(ROOT)), function) if inside else None
        return self._known[code]


def summarize(calls: Sequence[Call]) -> dict[str, Any]:
    """The figures of one passage.

    Returns:
        `calls`, `functions`, `files`, `changes_of_file`; `entered`, how often each place was; `path`, the files in the
        order of their first call, each with its functions.
    """
    places = [MODEL if file.startswith(MODEL) else file for file, _ in calls]
    entries = [place for number, place in enumerate(places) if not number or places[number - 1] != place]
    path: dict[str, list[str]] = {}
    for file, function in dict.fromkeys(calls):
        path.setdefault(file, []).append(function)
    return {
        "calls": len(calls),
        "functions": len(set(calls)),
        "files": len(path),
        "changes_of_file": max(0, len(entries) - 1),
        "entered": dict(Counter(entries).most_common()),
        "path": path,
    }


# ---------------------------------------------------------------------- journeys


def frame_to_chunk(trace: Trace) -> None:
    """Websocket frame -> action chunk: a real server on loopback, a tiny model, our client.

    Only the server's threads are watched, from the client's send to the server's write of the reply to the socket.
    """
    from benchmarks.serving import STATE_DIM, VIEWS, tiny_checkpoint
    from syvla.serving import PolicyClient, PolicyServer
    from syvla.serving.server.settings import ServerSettings

    images = dict.fromkeys(VIEWS, np.zeros((224, 224, 3), np.uint8))

    def replied(thread: str, event: str, argument: Any) -> bool:
        if event != "c_return" or thread != "policy-server" or argument.__qualname__ != "socket.send":
            return False
        return argument.__self__.family == socket.AF_INET  # not the pair of sockets that wakes the event loop

    with tempfile.TemporaryDirectory() as folder, trace.installed(this_thread=False):
        server = PolicyServer.from_pretrained(str(tiny_checkpoint(Path(folder))), ServerSettings(port=0), device="cpu")
        with server.start(120), PolicyClient(f"ws://{server.url}") as client:
            for number in range(8):
                if number < 3:  # tables are filled and code is compiled
                    client.act(images, np.zeros(STATE_DIM), "lift the red cube", seed=number)
                    continue
                time.sleep(0.2)  # what follows on the reply before is over
                with trace.passage(replied, timers=("_DrainingServer._drain", "_DrainingServer.main_loop")):
                    client.act(images, np.zeros(STATE_DIM), "lift the red cube", seed=number)


JOURNEYS: dict[str, Callable[[Trace], None]] = {
    "frame_to_chunk": frame_to_chunk,
    "rollout_to_policy": rollout_to_policy,
    "row_to_step": row_to_step,
}


def measure(name: str) -> dict[str, Any]:
    """The figures of a journey: of its shortest passage, since timers that tick meanwhile only add calls."""
    trace = Trace()
    JOURNEYS[name](trace)
    return summarize(min(trace.passages, key=len))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journeys", nargs="*", metavar="journey", help=f"out of {', '.join(JOURNEYS)}; default: all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--path", action="store_true", help="print every file with its functions, in order")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.journeys) - set(JOURNEYS))
    if unknown:
        parser.error(f"journeys: expected names out of {', '.join(JOURNEYS)}, got {', '.join(unknown)}")
    results = {name: measure(name) for name in options.journeys or JOURNEYS}
    for name, result in results.items():
        figures = ", ".join(f"{key.replace('_', ' ')} {result[key]}" for key in list(result)[:4])
        print(f"{name}: {figures}")
        for place, times in result["entered"].items():
            print(f"  {times:3d} times into {place}")
        for file, functions in result["path"].items() if options.path else ():
            print(f"  {file}: {', '.join(functions)}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
