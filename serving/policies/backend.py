"""A SyVLA checkpoint behind the server, for every robot that the checkpoint knows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from syvla.modeling_syvla.flow_sde import sample_with_sde_step
from syvla.modeling_syvla.flow_solver import require_uniform_euler
from syvla.serving.contract.requests import ActAnswer, ActRequest, PendingQueries
from syvla.serving.contract.rollout_sampler import ChainStep, RolloutSampler

from .dual_system import DualSystemPolicy
from .in_process import Intention, ModelInputs, SyVLAPolicy
from .loading import content_digest, load_for_inference, weights_digest
from .query_refresher import MAX_AGE_S, QueryTicket


class SyVLABackend:
    """The `PolicyBackend` of a checkpoint: one `SyVLAPolicy` per embodiment, on one model and one processor.

    Args:
        model: `SyVLAModel`.
        processor: `SyVLAProcessor`.
        embodiments: Robots to serve; None: all that the processor knows.
        name: Checkpoint, for the metadata.
        revision: Commit of a Hub checkpoint; None if it is not known.
        max_new_tokens, num_steps: As in `SyVLAPolicy`, for requests that do not say.
        noise, advantage_guidance, remember: As in `SyVLAPolicy`, for all requests.
        dual_system: Let the VLM run in the background, see `DualSystemPolicy`; every request then needs a session.
        background_think: In dual-system use, whether the VLM thinks.
        max_query_age: In dual-system use, seconds; a request waits instead of acting on older query states, and is refused
            if the VLM fails; None: no bound.
        sampler: Samples the chunks of recorded episodes, and of no other requests; None: all chunks are denoised.

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
        noise: str = "random",
        advantage_guidance: float | None = None,
        remember: bool = False,
        dual_system: bool = False,
        background_think: bool = False,
        max_query_age: float | None = MAX_AGE_S,
        sampler: RolloutSampler | None = None,
    ) -> None:
        if sampler is not None and noise != "random":
            raise ValueError(
                f"noise: the episodes of this run are sampled by {sampler.method}, which scores them by its random noise; "
                "leave --noise out, or train with ratio_method=fpo"
            )
        if sampler is not None and advantage_guidance not in (None, 1):
            raise ValueError(
                f"advantage_guidance: the episodes of this run are sampled by {sampler.method}, which scores unguided steps; "
                "leave --advantage-guidance out, or train with ratio_method=fpo"
            )
        self.name, self.revision, self.noise = name, revision, noise
        self.advantage_guidance = advantage_guidance
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
                noise=noise,
                advantage_guidance=advantage_guidance,
                remember=remember,
                optional_cameras=views,
                name=name,
            )
            for embodiment in (processor.embodiments if embodiments is None else embodiments)
        }
        if not self.policies:
            raise ValueError(f"{name}: expected a processor that knows a robot; see processor.set_embodiment")
        self.background: dict[str, DualSystemPolicy] = {}
        self._background_think = background_think
        if dual_system:
            self.background = {
                embodiment: DualSystemPolicy(policy, max_query_age=max_query_age)
                for embodiment, policy in self.policies.items()
            }
        self.weights = weights_digest(model)
        chosen: list[Any] = [] if noise == "random" else [noise]
        if advantage_guidance not in (None, 1):
            chosen.append({"advantage_guidance": advantage_guidance})
        self.version = content_digest([self.weights, processor.embodiments, *chosen])[:32]

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
    ) -> SyVLABackend:
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
        """See `PolicyBackend.metadata`."""
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
            "noise": self.noise,
            "advantage_conditioned": bool(config.advantage_conditioned),
            "advantage_guidance": self.advantage_guidance,
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
            "normalization_id": content_digest([entry["statistics"], entry["normalization"]])[:32],
            "limits": entry.get("action_limits") or {},
        }

    def submit_observation(self, request: ActRequest) -> PendingQueries | None:
        """See `PolicyBackend.submit_observation`: in dual-system use a session's first request waits for its query states."""
        if not self.background:
            return None
        if request.session is None:
            raise ValueError("session_id: expected the name of a session, since query states are kept per session")
        if request.think != self._background_think and request.thought is None:
            does = "thinks" if self._background_think else "does not think"
            raise ValueError(f"think: this server's VLM {does}, in the background, for all (--async, --think)")
        if request.max_new_tokens is not None:
            raise ValueError("max_new_tokens: expected none, since the VLM runs in the background (--async)")
        return self._submit(request)

    def _submit(self, request: ActRequest) -> QueryTicket[Intention]:
        background = self.background[request.embodiment]
        return background.submit(request.images, request.state, request.instruction, str(request.session))

    def _ticket(self, request: ActRequest) -> QueryTicket[Intention]:
        """The ticket of `submit_observation`; a new one if the request has none, or one of a policy replaced since."""
        ticket = request.pending_queries
        if isinstance(ticket, QueryTicket) and ticket.owner is self.background[request.embodiment].refresher:
            return ticket
        return self._submit(request)

    def answer(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        """See `PolicyBackend.answer`."""
        if self.background:
            return self._answer_at_once(requests)
        for request in requests:
            self._check_sampled(request)
        first, policy = requests[0], self.policies[requests[0].embodiment]
        seeds, previous = [request.seed for request in requests], [request.previous for request in requests]
        inputs = policy.inputs(
            [request.images for request in requests],
            [request.state for request in requests],
            [request.instruction for request in requests],
            None if first.think else [request.thought for request in requests],
        )
        intention = policy.intention(inputs, think=bool(first.think), max_new_tokens=first.max_new_tokens)
        started = time.monotonic()
        chains: Sequence[ChainStep | None] = [None] * len(requests)
        if first.rollout and self.sampler is not None:
            actions, chains = sample_rollout(policy, inputs, intention, seeds=seeds, sampler=self.sampler)
        else:
            noise, steps = [request.noise for request in requests], first.num_steps
            actions = policy.denoise(inputs, intention, seeds=seeds, previous=previous, num_steps=steps, noise=noise)
        seconds = {**intention.seconds, "denoise": time.monotonic() - started}
        thoughts: Sequence[str | None] = intention.thoughts or [request.thought for request in requests]
        rows = zip(requests, actions, thoughts, chains, strict=True)
        return [
            ActAnswer(chunk, thought, dict(seconds), _extras(request), chain) for request, chunk, thought, chain in rows
        ]

    def _check_sampled(self, request: ActRequest) -> None:
        """Raises ValueError for options that do not go together with a chunk that is scored by its sampler."""
        sampler = self.sampler
        if sampler is None or not request.rollout:
            return
        if request.previous is not None:
            raise ValueError(
                f"prev_chunk: the episodes of this run are sampled by {sampler.method}, whose chunks stand for themselves; "
                "leave it out, or train with ratio_method=fpo"
            )
        if request.noise is not None:
            raise ValueError(
                f"noise: the episodes of this run are sampled by {sampler.method}, which draws its own from the seed; leave it "
                "out, or train with ratio_method=fpo"
            )
        if request.num_steps not in (None, sampler.num_steps):
            raise ValueError(
                f"num_steps: expected {sampler.num_steps} in the episodes of this run, by whose steps they are scored, got "
                f"{request.num_steps}; leave it out"
            )

    def _answer_at_once(self, requests: Sequence[ActRequest]) -> list[ActAnswer]:
        """Answers on query states of the background, in dual-system use."""
        started = time.monotonic()
        chunks = self.background[requests[0].embodiment].predict(
            [request.images for request in requests],
            [request.state for request in requests],
            [self._ticket(request) for request in requests],
            seeds=[request.seed for request in requests],
            previous=[request.previous for request in requests],
            num_steps=requests[0].num_steps,
            noise=[request.noise for request in requests],
        )
        seconds = time.monotonic() - started
        thoughts: Sequence[str | None] = chunks.thoughts or [None] * len(requests)
        ages, vlm_seconds = chunks.query_ages or [], chunks.vlm_seconds or []
        rows = zip(requests, chunks.actions, thoughts, ages, vlm_seconds, strict=True)
        return [
            ActAnswer(
                chunk,
                thought,
                {"denoise": seconds},
                {
                    **_extras(request),
                    "query_age": age.seconds,
                    "query_age_calls": age.calls,
                    "thought_age": age.calls,
                },
                vlm_seconds=dict(vlm),
            )
            for request, chunk, thought, age, vlm in rows
        ]

    def forget(self, session: str) -> None:
        """See `PolicyBackend.forget`."""
        for background in self.background.values():
            background.forget(session)

    def take_vlm_seconds(self) -> list[Mapping[str, float]]:
        """See `PolicyBackend.take_vlm_seconds`."""
        return [seconds for background in self.background.values() for seconds in background.take_vlm_seconds()]

    def warm_up(self, think: bool = False) -> None:
        """Answers a request for each robot, so that everything is compiled and allocated before the first real one.

        Raises:
            ValueError: Actions that are not finite, as damaged weights make them.
        """
        size = int(self.model.config.expert_image_size)
        image = np.zeros((size, size, 3), np.uint8)
        for name in self.policies:
            state = np.zeros(self.processor.embodiments[name]["state_dim"], np.float32)
            images = dict.fromkeys(self.processor.views, image)
            for thinking in (True, False) if think else (False,):
                # A session of its own: its first answer waits for its run of the VLM, so that none goes on after the warm-up.
                session = f"warm up {thinking}"
                request = ActRequest(images, state, "warm up", 0, name, think=thinking, session=session)
                (answer,) = self.answer([request])
                self.forget(session)
                if not np.isfinite(answer.actions).all():
                    raise ValueError(
                        f"warm up: expected finite actions for {name!r}, got others; its weights are damaged"
                    )
        self.take_vlm_seconds()  # no client asked for these runs

    def close(self) -> None:
        """Ends the background threads of dual-system use."""
        for background in self.background.values():
            background.close()


def _extras(request: ActRequest) -> dict[str, Any]:
    return {} if request.previous is None else {"frozen_steps": request.previous.delay}


@torch.inference_mode()
def sample_rollout(
    policy: SyVLAPolicy, inputs: ModelInputs, intention: Intention, *, seeds: Sequence[int], sampler: RolloutSampler
) -> tuple[np.ndarray, list[ChainStep]]:
    """`SyVLAPolicy.denoise` with one stochastic step per sample, for rollouts that are scored by that step.

    Noise, stochastic step and its number come from each sample's own seed.

    Returns:
        (chunks (B, T, D_action) in physical units, the stochastic step of each).

    Raises:
        ValueError: If the action head is no flow, or its steps are not equal Euler steps.
    """
    model, shape = policy.model, policy.chunk_shape
    if model.config.action_head != "flow_matching":
        raise ValueError(f"{sampler.method}: expected a policy that samples a flow, got {model.config.action_head!r}")
    require_uniform_euler(model.config, sampler.method)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    kick = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    step = torch.stack([torch.randint(sampler.num_steps, (), generator=generator) for generator in generators])
    context = model.encode_expert_context(intention.query_states, inputs.expert, intention.mask)
    actions, before, after = sample_with_sde_step(
        lambda x, t: model.expert.predict_velocity(x, t, context),
        noise.to(model.device),
        kick.to(model.device),
        step.to(model.device),
        num_steps=sampler.num_steps,
        noise_level=sampler.noise_level,
    )
    width = policy.processor.embodiments[policy.embodiment]["action_dim"]
    own = [part[..., :width].float().cpu().numpy() for part in (before, after)]
    chains = [ChainStep(x, following, int(number), sampler) for x, following, number in zip(*own, step, strict=True)]
    return policy.physical(actions[..., :width], inputs), chains
