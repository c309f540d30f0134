"""The one rule of the clients: what is tried again, how often, and what is raised in the end."""

import asyncio

import pytest
from tenacity import AsyncRetrying, Retrying

from syvla.serving.client.retries import ClientOptions, PolicyError, Unreachable, retrying

OPTIONS = ClientOptions(retries=3, backoff=0.0)


def may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) or getattr(error, "status", None) == 503


def busy() -> PolicyError:
    error = PolicyError("come later")
    error.status = 503
    return error


FAILURES = [
    (
        lambda: ConnectionResetError("cut"),
        4,
        Unreachable,
        r"ws://robot: no answer after 4 attempts \(Connection.*cut\)",
    ),
    (busy, 4, PolicyError, "^come later$"),
    (lambda: PolicyError("wrong shape"), 1, PolicyError, "^wrong shape$"),
    (lambda: ValueError("a fault of ours"), 1, ValueError, "^a fault of ours$"),
]


@pytest.mark.parametrize(("failure", "attempts", "kind", "message"), FAILURES)
def test_what_may_pass_is_tried_again_and_the_rest_is_raised_at_once(failure, attempts, kind, message):
    tried = []

    def work():
        tried.append(1)
        raise failure()

    async def later():
        work()

    with pytest.raises(kind, match=message):
        Retrying(**retrying(OPTIONS, "ws://robot", may_pass))(work)
    with pytest.raises(kind, match=message):
        asyncio.run(AsyncRetrying(**retrying(OPTIONS, "ws://robot", may_pass))(later))
    assert len(tried) == 2 * attempts


def test_pauses_double_up_to_the_longest_with_a_quarter_more_or_less():
    options = ClientOptions(backoff=0.25, max_backoff=4.0)
    for failures, middle in enumerate((0.25, 0.5, 1.0, 2.0, 4.0, 4.0), start=1):
        pauses = [options.pause(failures) for _ in range(200)]
        assert 0.75 * middle <= min(pauses) < 0.85 * middle
        assert 1.15 * middle < max(pauses) <= 1.25 * middle


def test_an_interruption_is_not_a_failure_to_try_again():
    def work():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retrying(**retrying(OPTIONS, "ws://robot", may_pass))(work)
