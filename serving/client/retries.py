"""What a failure means to a client of the policy server, and when its request is sent again. One rule for all clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, retry_if_exception, stop_after_attempt


class PolicyError(RuntimeError):
    """The server refused a request and says why; the connection stays usable. Sending it again would not help.

    Attributes:
        status: HTTP status, over HTTP.
        cause: The server's label of the refusal, where it gives one.
    """

    status: int | None = None
    cause: str | None = None


class Unreachable(ConnectionError):
    """No connection or no answer, after all retries; `__cause__` is the last failure."""


def check_token(token: str | None) -> None:
    """Raises ValueError for a token that no header can carry; the message does not show it."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        stray = "a line break" if token and "\n" in token else "other characters"
        raise ValueError(
            f"token: expected printable ASCII characters without spaces, got {stray if token else 'an empty text'}; strip "
            "what was read from a file"
        )


@dataclass(frozen=True)
class ClientOptions:
    """How patient a client is. Defaults are ours: a policy that takes more than 30 s is of no use to a moving robot.

    Attributes:
        token: The server's, if it wants one.
        connect_timeout: Seconds to open a connection and get the metadata.
        read_timeout: Seconds to wait for an answer.
        retries: Further attempts after a lost connection or a missing answer.
        backoff: Seconds before the first of them, doubled each time with up to a quarter more or less, at most
            `max_backoff`.
        ping_interval: Seconds between keepalive pings, and for their answer. None sends none, for servers that answer
            none while their policy computes (openpi's), which would then be taken for dead.
        extras: Whether to add seed, request id, session id and reset where a request has none. Off for servers that may
            refuse keys which they do not know.
    """

    token: str | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    retries: int = 4
    backoff: float = 0.25
    max_backoff: float = 4.0
    ping_interval: float | None = 20.0
    extras: bool = True

    def __post_init__(self) -> None:
        check_token(self.token)

    def pause(self, failures: int) -> float:
        """Seconds to sleep after that many failed attempts, at least one."""
        seconds: float = min(self.max_backoff, self.backoff * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)
        return seconds


def retrying(options: ClientOptions, url: str, may_pass: Callable[[BaseException], bool]) -> dict[str, Any]:
    """Arguments of tenacity's `Retrying` and `AsyncRetrying`.

    A failure that may not pass is raised as it is, at once. After the last attempt a `PolicyError` is raised as it is, and
    any other failure as `Unreachable`.

    Args:
        options: How often, and how long to wait in between.
        url: The server, for the message.
        may_pass: Whether another attempt may help after this failure.
    """

    def give_up(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        if isinstance(error, PolicyError):
            raise error
        raise Unreachable(
            f"{url}: no answer after {state.attempt_number} attempts ({type(error).__name__}: {error}); is the server "
            "running?"
        ) from error

    return {
        "retry": retry_if_exception(may_pass),
        "wait": lambda state: options.pause(state.attempt_number),
        "stop": stop_after_attempt(options.retries + 1),
        "retry_error_callback": give_up,
    }
