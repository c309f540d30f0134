"""A language model behind an OpenAI-compatible server judges answers; its verdicts are kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from syvla.durable_files import append_json_lines, make_folder, read_json_lines

from .yes_no_rule import Verdict

logger = logging.getLogger(__name__)

_INSTRUCTION = (
    "You grade an answer to a question about an image. The reference is right. Reply with one word: correct if the answer "
    "agrees with the reference, incorrect if it contradicts it, unclear if it does not say."
)
_CHOICE = (
    "You are given a question, its options and an answer. Reply with the name of the option that the answer means, and with "
    "nothing else. Reply with none if the answer means no option, or several."
)
_LONGEST_REPLY = 1_000_000  # bytes


class JudgeServer:
    """Asks `URL/chat/completions` for verdicts.

    Args:
        url: Base URL such as `http://127.0.0.1:8000/v1`, or the whole address of `chat/completions`.
        model: Name of the judging model.
        checkpoint: Digest of the judged weights: a verdict is never taken over from another checkpoint.
        cache: JSON-lines file of verdicts, None: none is kept.
        key: Bearer token.
        timeout: Seconds for one request.
        tries: Requests per answer before it is an error; between them 1, 2, 4, ... times `pause` seconds.
        workers: Requests at a time.
    """

    def __init__(
        self,
        url: str,
        model: str,
        checkpoint: str,
        cache: str | Path | None = None,
        key: str | None = None,
        timeout: float = 60.0,
        tries: int = 4,
        pause: float = 1.0,
        workers: int = 8,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"judge_url: expected http:// or https://, got {url!r}")
        self.url = url if url.endswith("/chat/completions") else url.rstrip("/") + "/chat/completions"
        self.model, self.checkpoint, self.key = model, checkpoint, key
        self.timeout, self.tries, self.pause, self.workers = timeout, tries, pause, workers
        self.cache = Path(cache) if cache is not None else None
        self._known: dict[str, str] = self._read()
        self._lock = Lock()

    def choices(self, questions: Sequence[tuple[str, Mapping[str, str], str]]) -> list[str | None]:
        """Which option each answer means, None where the judge finds none.

        Args:
            questions: Question, text of every option by its name, and answer.

        Raises:
            OSError: As `verdicts`.
        """
        return self._all(lambda item: self._choice(*item), questions)

    def verdicts(self, rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[Verdict]:
        """Verdicts on answers, in their order.

        Args:
            rows: `question` and `gt_answer_details` of each.
            answers: What the model said.

        Raises:
            OSError: If the server refuses, or does not give a verdict within `tries`; verdicts so far are kept.
        """
        return self._all(lambda item: self._verdict(*item), list(zip(rows, answers, strict=True)))

    def _all(self, judged: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        from tqdm import tqdm

        with ThreadPoolExecutor(self.workers) as pool:
            jobs = [pool.submit(judged, item) for item in items]
            try:
                return [job.result() for job in tqdm(jobs, desc="judge", disable=None)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _verdict(self, row: dict[str, Any], answer: str) -> Verdict:
        parts = [self.checkpoint, row["question"], row["gt_answer_details"], answer, self.model]
        prompt = f"Question: {row['question']}\nReference: {row['gt_answer_details']}\nAnswer: {answer}"
        verdict: Verdict = self._known_or_asked(parts, _INSTRUCTION, prompt, _read_verdict)
        return verdict

    def _choice(self, question: str, options: Mapping[str, str], answer: str) -> str | None:
        listed = "\n".join(f"{name}. {text}" for name, text in options.items())
        prompt = f"Question: {question}\nOptions:\n{listed}\nAnswer: {answer}"
        parts = [self.checkpoint, prompt, self.model]
        chosen: str = self._known_or_asked(parts, _CHOICE, prompt, lambda reply: _read_choice(reply, options))
        return chosen or None

    def _known_or_asked(self, parts: list[str], instruction: str, prompt: str, read: Callable[[str], str]) -> Any:
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        reply = self._ask(instruction, prompt)
        verdict = read(reply)
        with self._lock:
            self._known[key] = verdict
            if self.cache is not None:
                make_folder(self.cache.parent)
                append_json_lines(self.cache, [{"key": key, "verdict": verdict, "reply": reply, "prompt": prompt}])
        return verdict

    def _ask(self, instruction: str, prompt: str) -> str:
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": 16, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                request = urllib.request.Request(self.url, body, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read(_LONGEST_REPLY))["choices"][0]["message"]["content"] or ""
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}"
                said = error.read(200).decode(errors="replace").strip()  # by which the answering server shows who it is
                if error.code != 429 and error.code < 500:
                    raise OSError(
                        f"judge: {self.url} refuses with {reason} ({said}); check judge_url, judge_model and the key"
                    ) from error
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise OSError(
            f"judge: {self.url} gave no verdict in {self.tries} tries (last: {reason}); verdicts so far are kept, run again "
            "with --resume, or without --judge-url for the rule"
        )

    def _read(self) -> dict[str, str]:
        if self.cache is None:
            return {}
        entries, _ = read_json_lines(self.cache)  # what a crash cut off is asked again
        return {entry["key"]: entry["verdict"] for entry in entries if "key" in entry and "verdict" in entry}


def _read_verdict(reply: str) -> Verdict:
    words = re.findall(r"[a-z]+", reply.lower())
    if "incorrect" in words:
        return "incorrect"
    return "correct" if "correct" in words else "unclear"


def _read_choice(reply: str, options: Mapping[str, str]) -> str:
    """The one option that a reply names, empty where it names none or several."""
    words = {word.lower() for word in re.findall(r"\w+", reply)}
    named = [name for name in options if name.lower() in words]
    return named[0] if len(named) == 1 else ""
