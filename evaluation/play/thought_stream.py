"""A thought while it is generated: its text grows token by token, and at its end stand the query states."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch

from syvla.serving.policies.in_process import Intention, ModelInputs, SyVLAPolicy


class _TokenQueue:
    """A streamer of `generate` that hands on every token of the thought; the prompt comes first and is left out."""

    def __init__(self) -> None:
        self.received: queue.SimpleQueue[int | Intention | BaseException] = queue.SimpleQueue()
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            for token in value.flatten().tolist():
                self.received.put(token)
        self._prompt = False

    def end(self) -> None:
        """Does nothing: the query states, which come after the thought, end the stream."""


def stream_intention(policy: SyVLAPolicy, inputs: ModelInputs) -> Iterator[str | Intention]:
    """What the VLM makes of one observation, as it makes it.

    Args:
        policy: Thinks with its own `max_new_tokens`.
        inputs: Of one observation.

    Yields:
        The thought so far, after every token; last the intention.
    """
    stream = _TokenQueue()

    def think() -> None:
        generation: dict[str, Any] = {} if policy.max_new_tokens is None else {"max_new_tokens": policy.max_new_tokens}
        generation |= {"tokenizer": policy.processor.tokenizer, "streamer": stream, "do_sample": False}
        try:
            with torch.inference_mode():
                states, mask, thoughts, _ = policy.model.predict_query_states(**inputs.prompt, think=True, **generation)
            stream.received.put(Intention(states, mask, thoughts))
        except BaseException as error:
            stream.received.put(error)

    thread = threading.Thread(target=think, name="syvla-play-thought", daemon=True)
    thread.start()
    tokens: list[int] = []
    while True:
        item = stream.received.get()
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, Intention):
            thread.join()
            yield item
            return
        tokens.append(item)
        yield policy.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
