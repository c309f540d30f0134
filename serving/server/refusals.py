"""Errors that hold nothing of the request that they refuse. No torch.

An exception holds the frames that it came through, and their variables: messages and decoded images. A frame that also
holds the exception, as asyncio's and futures' do, closes a cycle, which lives until the collector runs. Counted by the
memory budget as given back, such images once filled a machine.
"""

from __future__ import annotations

import traceback

from syvla.serving.contract.requests import RequestError

from .batching import internal_error


def without_request_data(error: Exception) -> RequestError:
    """A new error that says the same to the client. Frames and errors that led to `error` are emptied.

    Args:
        error: What ended a request. If it is no `RequestError`, it is logged, and the client learns only that it happened.
    """
    said = error if isinstance(error, RequestError) else internal_error("the request", error)
    refusal = RequestError(str(said), status=said.status, cause=said.cause, retry_after=said.retry_after)
    left: list[BaseException] = [error]
    while left:
        one = left.pop()
        left += [linked for linked in (one.__context__, one.__cause__) if linked is not None]
        frames = one.__traceback__
        one.__context__ = one.__cause__ = one.__traceback__ = None
        traceback.clear_frames(frames)
    return refusal
