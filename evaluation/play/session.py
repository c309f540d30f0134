"""One person's game: a scene, a policy, and the moments between instruction and success."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from syvla.evaluation.environments import EVALUATION_SEED_OFFSET, make_environment
from syvla.evaluation.episode_slot import call_seed
from syvla.evaluation.policy import load_policy
from syvla.serving.policies.in_process import Intention, ModelInputs, SyVLAPolicy

from .introspection import Decoupling, ExpertAttention, expert_attention, query_decoupling
from .scene import PlayScene
from .thought_stream import stream_intention

MOST_INSTRUCTION = 200  # characters
MOST_STEPS = 120  # control steps of one run: 12 seconds of simulated time; the expert needs about 16 steps
REPLAN_STEPS = 4
MAX_NEW_TOKENS = 20  # the longest thought of the demonstrations has 14


PHASES = ("waiting", "thinking", "acting", "lifted")


@dataclass(frozen=True)
class Moment:
    """What a person sees at one time.

    Attributes:
        pictures: Camera to uint8 (H, W, 3).
        instruction: What the policy was asked.
        thought: So far; it grows while the phase is "thinking".
        phase: One of `PHASES`.
        chunk: float32 (T, D), physical units, and of which `executed` steps ran; empty before the first.
        executed: See `chunk`.
        trace: float32 (K, D), all actions that ran in this run.
        decoupling: One for each chunk of this run.
        attention: Of the last chunk.
        steps: Control steps of the episode.
    """

    pictures: dict[str, np.ndarray]
    instruction: str = ""
    thought: str = ""
    phase: str = "waiting"
    chunk: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    executed: int = 0
    trace: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    decoupling: tuple[Decoupling, ...] = ()
    attention: ExpertAttention | None = None
    steps: int = 0


def load_tabletop_policy(checkpoint: str, *, device: str | None = None) -> SyVLAPolicy:
    """The policy of a checkpoint that was trained on the tabletop.

    Args:
        checkpoint: Folder or Hub id.
        device: See `load_for_inference`.

    Raises:
        ValueError: The checkpoint does not know the tabletop, or has no expert to look into.
    """
    environment = make_environment("tabletop", "lift")
    try:
        policy = load_policy(checkpoint, environment, think=True, max_new_tokens=MAX_NEW_TOKENS, device=device)
    finally:
        environment.close()
    if not isinstance(policy, SyVLAPolicy):
        raise ValueError(
            f"model: expected a checkpoint's folder or Hub id, got {checkpoint!r}, which has no expert to show"
        )
    return policy


class PlaySession:
    """A person's scene, played by a policy that sessions share.

    Args:
        policy: From `load_tabletop_policy`.
        seed: Of the first scene.
    """

    def __init__(self, policy: SyVLAPolicy, seed: int = 0) -> None:
        self.policy = policy
        self.scene = PlayScene()
        self.seed = EVALUATION_SEED_OFFSET + seed  # no demonstration has it
        self.instruction = ""
        self.action_names: tuple[str, ...] = ()
        self.moment = Moment({})
        self._lock = threading.Lock()  # scene: a person moves an object while a run steps it
        self._run = 0
        self.new_scene(seed)

    def new_scene(
        self, seed: int, *, color: str | None = None, position: tuple[float, float] | None = None, distractors: int = 0
    ) -> Moment:
        """Draws a scene; a run that is under way ends. See `PlayScene.draw`."""
        with self._lock:
            self._run += 1
            self.seed = EVALUATION_SEED_OFFSET + seed
            self.instruction = self.scene.draw(self.seed, color=color, position=position, distractors=distractors)
            self.action_names = tuple(self.scene.env.action_names)
            self.moment = Moment(self.scene.pictures(), self.instruction)
            return self.moment

    def move_object(self, x: float, y: float) -> Moment:
        """Puts the object elsewhere, also while a run is under way. See `PlayScene.move_object`."""
        with self._lock:
            self.scene.move_object(x, y)
            phase = "waiting" if self.moment.phase == "lifted" else self.moment.phase
            self.moment = replace(self.moment, pictures=self.scene.pictures(), phase=phase)
            return self.moment

    def stop(self) -> Moment:
        """Ends the run that is under way; the robot stays where it is."""
        with self._lock:
            self._run += 1
            if self.moment.phase != "lifted":
                self.moment = replace(self.moment, phase="waiting")
            return self.moment

    def run(self, instruction: str, *, most_steps: int = MOST_STEPS) -> Iterator[Moment]:
        """Lets the policy act until the object is lifted, `most_steps` ran, or another run, scene or `stop` ends it.

        Args:
            instruction: What to ask.
            most_steps: Control steps.

        Yields:
            A moment after every token of a thought, after every control step, and at the end.

        Raises:
            ValueError: An empty or overlong instruction.
        """
        asked = instruction.strip()
        if not 0 < len(asked) <= MOST_INSTRUCTION:
            raise ValueError(f"instruction: expected 1 to {MOST_INSTRUCTION} characters, got {len(asked)}")
        with self._lock:
            self._run += 1
            run = self._run
            self.moment = Moment(self.scene.pictures(), asked, steps=self.scene.steps)
        trace: list[np.ndarray] = []
        call = 0
        while self._run == run and len(trace) < most_steps and not self.scene.success:
            with self._lock:
                observation = self.scene.observation
                inputs = self.policy.inputs([observation["images"]], [observation["state"]], [asked])
            intention = None
            for part in stream_intention(self.policy, inputs):
                if isinstance(part, Intention):
                    intention = part
                elif self._update(run, thought=part, phase="thinking"):
                    yield self.moment
            assert intention is not None
            chunk = self._decide(run, inputs, intention, call)
            call += 1
            for index, action in enumerate(chunk[:REPLAN_STEPS], 1):
                if len(trace) >= most_steps or not self._act(run, action, trace, index):
                    break
                yield self.moment
        with self._lock:
            if self._run == run and self.moment.phase != "lifted":
                self.moment = replace(self.moment, phase="waiting")
        yield self.moment

    def _act(self, run: int, action: np.ndarray, trace: list[np.ndarray], index: int) -> bool:
        """Carries out one action unless the run is over or has succeeded; whether it did."""
        with self._lock:
            if self._run != run or self.scene.success:
                return False
            lifted = self.scene.step(action)
            trace.append(action)
            self.moment = replace(
                self.moment,
                pictures=self.scene.pictures(),
                phase="lifted" if lifted else "acting",
                executed=index,
                trace=np.stack(trace),
                steps=self.scene.steps,
            )
            return True

    def _update(self, run: int, **changes: Any) -> bool:
        """Changes the present moment, unless the run is over; whether it did."""
        with self._lock:
            if self._run == run:
                self.moment = replace(self.moment, **changes)
            return self._run == run

    def _decide(self, run: int, inputs: ModelInputs, intention: Intention, call: int) -> np.ndarray:
        """Chooses the chunk (T, D), and notes what it says about the policy."""
        seed, model = call_seed(self.seed, call), self.policy.model
        noise = torch.randn((1, *self.policy.chunk_shape), generator=torch.Generator().manual_seed(seed)).to(
            model.device
        )
        states = intention.query_states.clone()
        actions = model.sample_actions(states, inputs.expert, noise=noise, condition_mask=intention.mask)
        chunk: np.ndarray = self.policy.physical(actions, inputs)[0]
        decoupling = query_decoupling(model, states, inputs.expert, actions, seed)
        self._update(
            run,
            thought=(intention.thoughts or [""])[0],
            chunk=chunk,
            executed=0,
            decoupling=(*self.moment.decoupling, decoupling),
            attention=expert_attention(model, states, inputs.expert, actions, noise),
        )
        return chunk
