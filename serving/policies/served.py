"""A SyVLA checkpoint behind the server: every robot it knows, thoughts that are kept, the time that each phase took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from syvla.serving.contract.requests import ActAnswer, ActRequest, PendingQueries, PreviousChunk
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .dual_system import AsyncSyVLAPolicy, Look
from .in_process import SyVLAPolicy, weights_digest
from .loading import load_for_inference
from .phase_clock import PhaseClock
from .query_refresher import Call


class SyVLAServedPolicy:
    """What the server runs: one `SyVLAPolicy` per embodiment, on one model and one processor.

    Args:
        model: `SyVLAModel`.
        processor: `SyVLAProcessor`.
        embodiments: Robots to serve; None: all that the processor knows.
        name: Checkpoint, for the metadata.
        revision: Commit of a Hub checkpoint, where it is known.
        max_new_tokens, num_steps: As in `SyVLAPolicy`, for requests that do not say.
        dual_system: Let the VLM run in the background, see `AsyncSyVLAPolicy`; requests need a session.
        background_think: In dual-system use, whether the VLM thinks.
        max_query_age: In dual-system use, seconds after which query states are waited for.
        sampler: Samples the chunks of recorded episodes, and of nothing else; None: they are denoised as all others.

    Raises:
        ValueError: The processor knows none of the robots, or does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        embodiments: Sequence[str] | None = None,
        name: str = "SyVLA",
        revision: str | None = None,
        max_new_tokens: int | None = None,
        num_steps: int | None = None,
        dual_system: bool = False,
        background_think: bool = False,
        max_query_age: float | None = None,
        sampler: RolloutSampler | None = None,
    ) -> None:
        self.name, self.revision = name, revision
        self.model, self.processor, self.sampler = model, processor, sampler
        views = list(processor.views)
        self.policies = {
            embodiment: SyVLAPolicy(
                model,
                processor,
                embodiment,
                {view: view for view in views},
                think=background_think,
                max_new_tokens=max_new_tokens,
                num_steps=num_steps,
                optional_cameras=views,
                name=name,
            )
            for embodiment in (processor.embodiments if embodiments is None else embodiments)
        }
        if not self.policies:
            raise ValueError(f"{name}: expected a processor that knows a robot; see processor.set_embodiment")
        self.background: dict[str, AsyncSyVLAPolicy] = {}
        self._background_think = background_think
        if dual_system:
            self.background = {
                embodiment: AsyncSyVLAPolicy(policy, max_query_age=max_query_age)
                for embodiment, policy in self.policies.items()
            }
        self.weights = weights_digest(model)
        self.version = _digest([self.weights, processor.embodiments])

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        compile: bool = False,
        revision: str | None = None,
        pack_weights: bool = False,
        **options: Any,
    ) -> SyVLAServedPolicy:
        """Loads model and processor through their Auto classes, from a folder or the Hub.

        Args:
            path, device, dtype, compile, revision: See `load_for_inference`.
            pack_weights: See `SyVLAModel.optimize_for_inference`.
            **options: See the class.

        Raises:
            ValueError: If the weights cannot be packed, though asked for.
        """
        model, processor = load_for_inference(path, device=device, dtype=dtype, compile=compile, revision=revision)
        commit = getattr(model.config, "_commit_hash", None) or revision
        policy = cls(model, processor, **{"name": str(path), "revision": commit, **options})
        if pack_weights:  # after its plain weights have been hashed
            model.optimize_for_inference(compile=compile, pack_weights=True, strict=True)
        return policy

    def metadata(self) -> dict[str, Any]:
        """See `ServedPolicy.metadata`."""
        config, processor = self.model.config, self.processor
        size = int(config.expert_image_size)
        return {
            "model": self.name,
            "revision": self.revision,
            "weights": self.weights,
            "action_horizon": int(config.chunk_size),
            "views": list(processor.views),
            "camera_sizes": {view: [size, size] for view in processor.views},  # what the action expert sees
            "num_steps": int(config.num_inference_steps),
            "dual_system": bool(self.background),
            "rollout_sampler": None if self.sampler is None else self.sampler.describe(),
            "embodiments": {name: self._describe(name) for name in self.policies},
        }

    def _describe(self, name: str) -> dict[str, Any]:
        entry = self.processor.embodiments[name]
        kept = ("state_names", "action_names", "state_units", "action_units", "control_hz", "cameras")
        return {
            "state_dim": entry["state_dim"],
            "action_dim": entry["action_dim"],
            **{key: entry.get(key) for key in kept},
            "normalization": entry["normalization"],
            "normalization_id": _digest([entry["statistics"], entry["normalization"]]),
            "limits": entry.get("action_limits") or {},
        }

    def submit_observation(self, request: ActRequest) -> PendingQueries | None:
        """See `ServedPolicy.submit_observation`: in dual-system use a session's first request waits for its query states."""
        if not self.background:
            return None
        if request.session is None:
            raise ValueError("session_id: expected the name of a session, since query states are kept per session")
        if request.think != self._background_think and request.thought is None:
            does = "thinks" if self._background_think else "does not think"
            raise ValueError(f"think: this server's VLM {does}, in the background, for all (--async, --think)")
        if request.max_new_tokens is not None:
            raise ValueError("max_new_tokens: expected none, since the VLM runs in the background (--async)")
        return self._look(request)

    def _look(self, request: ActRequest) -> Call[Look]:
        observation = {"images": request.images, "state": request.state}
        return self.background[request.embodiment].look(observation, request.instruction, str(request.session))

    def _looked(self, request: ActRequest) -> Call[Look]:
        """What `submit_observation` left; a new look where it was not called, or by a policy that has been replaced since."""
        look = request.pending_queries
        own = isinstance(look, Call) and look.owner is self.background[request.embodiment].refresher
        return look if own else self._look(request)  # type: ignore[return-value]

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        """See `ServedPolicy.answer`."""
        policy = self.policies[requests[0].embodiment]
        observations = [{"images": request.images, "state": request.state} for request in requests]
        previous = [request.previous for request in requests]
        if self.background:
            return self._answer_at_once(requests, observations, previous)
        for request in requests:
            self._check_sampled(request)
        clock = PhaseClock(policy.model.device)
        first = requests[0]
        think = first.think
        intention = policy.intention(
            observations,
            [request.instruction for request in requests],
            think=think,
            thoughts=None if think else [request.thought for request in requests],
            max_new_tokens=first.max_new_tokens,
            streamer=clock if think else None,
        )
        clock.mark("queries")
        seeds = [request.seed for request in requests]
        chains: Sequence[ChainStep | None] = [None] * len(requests)
        if self._sampled(first):
            assert self.sampler is not None
            actions, chains = policy.sample_rollout(observations, intention, seeds=seeds, sampler=self.sampler)
        else:
            actions = policy.denoise(observations, intention, seeds=seeds, previous=previous, num_steps=first.num_steps)
        clock.mark("denoise")
        texts = intention.thoughts or [request.thought for request in requests]
        rows = zip(actions, texts, previous, chains, strict=True)
        return [
            ActAnswer(chunk, text, dict(clock.seconds), _extras(before), chain) for chunk, text, before, chain in rows
        ]

    def _sampled(self, request: ActRequest) -> bool:
        return request.rollout and self.sampler is not None

    def _check_sampled(self, request: ActRequest) -> None:
        """Raises ValueError for what a chunk that is scored by its sampler cannot have."""
        sampler = self.sampler
        if sampler is None or not request.rollout:
            return
        if request.previous is not None:
            raise ValueError(
                f"prev_chunk: the episodes of this run are sampled by {sampler.method}, whose chunks stand for themselves; "
                "leave it out, or train with ratio_method=fpo"
            )
        if request.num_steps not in (None, sampler.num_steps):
            raise ValueError(
                f"num_steps: expected {sampler.num_steps} in the episodes of this run, by whose steps they are scored, got "
                f"{request.num_steps}; leave it out"
            )

    def _answer_at_once(
        self, requests: Sequence[ActRequest], observations: list[dict[str, Any]], previous: list[PreviousChunk | None]
    ) -> list[ActAnswer]:
        """Dual-system use: on query states of the background."""
        clock = PhaseClock(self.model.device)
        answers = self.background[requests[0].embodiment].predict(
            observations,
            [self._looked(request) for request in requests],
            seeds=[request.seed for request in requests],
            previous=previous,
            num_steps=requests[0].num_steps,
        )
        clock.mark("denoise")
        thoughts: list[str | None] = [None] * len(requests)
        if answers.thoughts is not None:
            thoughts = [*answers.thoughts]
        ages, looks = answers.query_ages or [], answers.look_seconds or []
        rows = zip(answers.actions, thoughts, ages, looks, previous, strict=True)
        return [
            ActAnswer(
                chunk,
                thought,
                dict(clock.seconds),
                {**_extras(before), "query_age": age.seconds, "query_age_calls": age.calls, "thought_age": age.calls},
                look_timings=dict(look),
            )
            for chunk, thought, age, look, before in rows
        ]

    def forget(self, session: str) -> None:
        """See `ServedPolicy.forget`."""
        for background in self.background.values():
            background.forget(session)

    def new_looks(self) -> list[dict[str, float]]:
        """See `ServedPolicy.new_looks`."""
        return [seconds for background in self.background.values() for seconds in background.new_looks()]

    def warm_up(self, think: bool = False) -> None:
        """Answers one request per robot, so that the first real one finds everything compiled and allocated."""
        size = int(self.model.config.expert_image_size)
        image = np.zeros((size, size, 3), np.uint8)
        for name in self.policies:
            state = np.zeros(self.processor.embodiments[name]["state_dim"], np.float32)
            images = dict.fromkeys(self.processor.views, image)
            for thinking in (True, False) if think else (False,):
                self.answer([ActRequest(images, state, "warm up", 0, name, think=thinking, session="warm up")])
        self.forget("warm up")
        self.new_looks()  # no client's

    def close(self) -> None:
        """Ends the background threads of dual-system use."""
        for background in self.background.values():
            background.close()


def _extras(previous: PreviousChunk | None) -> dict[str, Any]:
    return {} if previous is None else {"frozen_steps": previous.delay}


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=lambda leaf: np.asarray(leaf).tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:32]
