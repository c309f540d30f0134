"""Questions with pictures to an OpenAI-compatible server, vLLM for example. What it answers is not trusted."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

logger = logging.getLogger(__name__)

PLACEHOLDERS = {
    "system": set[str](),
    "propose": {"task", "seconds", "boundaries", "texts", "most"},
    "verify": {"task", "seconds", "subtasks"},
}
"""What each prompt may name."""

MAX_ANSWER_BYTES = 2**20
_MAX_PROMPTS_BYTES = 2**18
_ATTEMPTS = 4
_MAX_TOKENS = 1024


class ServerError(RuntimeError):
    """A server that does not answer, or not as OpenAI's would; names the address and the reason."""


@dataclass
class VisionServer:
    """A server and one of its models. Threads may share one.

    Attributes:
        url: Such as `http://127.0.0.1:8000/v1`.
        model: Its name on the server; None takes the only one that the server has.
        key: Sent as bearer token; None sends none.
        timeout_s: For one answer.
    """

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 180.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"server: expected an address such as http://127.0.0.1:8000/v1, got {self.url!r:.80}")
        self.url = self.url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        self._client = httpx.Client(timeout=self.timeout_s, headers=headers, follow_redirects=False)

    def model_name(self) -> str:
        """The model's name, asked for once.

        Raises:
            ServerError: The server has none, or several and none was chosen.
        """
        if self.model is None:
            listed = self._request("GET", "/models").get("data")
            names = [str(entry.get("id")) for entry in listed or () if isinstance(entry, dict)]
            if len(names) != 1:
                raise ServerError(f"{self.url}: the server has the models {names[:20]}; choose one with --model")
            self.model = names[0]
        return self.model

    def ask(self, system: str, question: str, pictures: Sequence[tuple[str, bytes]]) -> str:
        """Asks one question.

        Args:
            system: Prompt of the role "system".
            question: Follows the pictures.
            pictures: A caption and a JPEG each.

        Returns:
            The answer's text.

        Raises:
            ServerError: No answer, after several attempts where the server was busy.
        """
        content: list[dict[str, Any]] = []
        for caption, jpeg in pictures:
            address = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
            content += [{"type": "text", "text": caption}, {"type": "image_url", "image_url": {"url": address}}]
        content.append({"type": "text", "text": question})
        body = {
            "model": self.model_name(),
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
            "temperature": 0.0,
            "max_tokens": _MAX_TOKENS,
        }
        answer = self._request("POST", "/chat/completions", body)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ServerError(f"{self.url}: the answer has no text; is this an OpenAI-compatible server?")
        return text

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        attempts = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_exponential(0.5, max=20),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return attempts(self._once, method, path, body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self.url}: {type(error).__name__}: {error}; is the server running?") from error
        except _Refused as error:
            raise ServerError(f"{self.url}: {error}") from error

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._client.stream(method, self.url + path, json=body) as reply:
            received = bytearray()
            for part in reply.iter_bytes():
                received += part
                if len(received) > MAX_ANSWER_BYTES:
                    raise ServerError(f"{self.url}: the answer has more than {MAX_ANSWER_BYTES} bytes")
        if reply.status_code != 200:
            raise _Refused(reply.status_code, received.decode("utf-8", "replace"))
        try:
            value = json.loads(received)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ServerError(f"{self.url}: expected a JSON object; is this an OpenAI-compatible server?")
        return value


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        printable = "".join(character for character in text if character.isprintable())
        super().__init__(f"status {status}: {printable[:300]}")


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, _Refused):
        return error.status == 429 or error.status >= 500
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def default_prompts() -> str:
    """The text of the prompts' file that comes with the package."""
    return files(__package__).joinpath("prompts.yaml").read_text(encoding="utf-8")


def load_prompts(path: Path | None) -> dict[str, str]:
    """The prompts of a file; None: those that come with the package.

    Raises:
        ValueError: A prompt is missing or unknown, or names something that there is not.
    """
    import yaml

    where = "prompts" if path is None else f"prompts: {path}"
    if path is not None and path.stat().st_size > _MAX_PROMPTS_BYTES:
        raise ValueError(f"{where}: {path.stat().st_size} bytes, more than {_MAX_PROMPTS_BYTES}")
    try:
        values = yaml.safe_load(default_prompts() if path is None else path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(values, dict) or set(values) != set(PLACEHOLDERS):
        found = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{where}: expected the keys {sorted(PLACEHOLDERS)}, got {found}")
    for name, text in values.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: {name}: expected a text, got {text!r:.60}")
        if unknown := set(re.findall(r"\{(\w+)\}", text)) - PLACEHOLDERS[name]:
            known = sorted(PLACEHOLDERS[name])
            raise ValueError(f"{where}: {name}: there is no {sorted(unknown)}; a prompt may name {known}")
    return {str(name): str(text) for name, text in values.items()}


def filled(prompt: str, **values: Any) -> str:
    """A prompt with its placeholders replaced; other braces, as JSON has them, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: str(values.get(match[1], match[0])), prompt)
