"""The Scheduler of a run of reinforcement learning (paper, appendix A, figure 4): hosts the policy that acts, hands out
episodes, and follows the policies that the Workers publish. Between the two lie only files. No torch.

A new policy is loaded beside the old one and put in place when no episode is open; until then no further episode begins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syvla.serving.contract.requests import PolicyBackend, RequestError

from .episodes import AWAITING, ENDING, OPEN, SEALED, RLEpisodes
from .progress import RunProgress, RunSize, read_progress, read_size
from .published_policies import (
    DamagedPolicy,
    PublishedPolicy,
    newest_whole,
    point_latest,
    read_latest,
    read_published,
    version_names,
)

if TYPE_CHECKING:
    from syvla.serving.server.act_service import ActService

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RLSettings:
    """Settings of a run.

    Attributes:
        run: Folder of the run, the trainer's `output_dir`: `policies/`, `rollouts/`, `journal.jsonl`.
        rollouts_per_update: Rollouts of a policy that an update takes; further ones do not begin. None: the trainer's number.
        max_updates: Updates of the run; None: the trainer's number.
        ahead: Rollouts that may be made beyond those; of use only where the trainer's `max_staleness` is above 0.
        silent_s: Seconds after which the episode of a silent robot is aborted, so that it holds up no other robot and no
            policy. Every request of the episode begins them anew. Ours: several chunks, and an answer that takes long.
        poll_s: Seconds between looks at the run's folder.
    """

    run: Path
    rollouts_per_update: int | None = None
    max_updates: int | None = None
    ahead: int = 0
    silent_s: float = 30.0
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("rollouts_per_update", 1), ("max_updates", 1), ("ahead", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not self.silent_s > 0 or not self.poll_s > 0:
            raise ValueError("silent_s, poll_s: expected more than 0 seconds")

    @property
    def policies(self) -> Path:
        return self.run / "policies"


class RLScheduler:
    """See the module's text.

    Args:
        settings: `RLSettings`.
        load: Loads the policy of a folder; its `version` is then set to the published hash, which rollouts carry.
    """

    def __init__(self, settings: RLSettings, load: Callable[[Path], PolicyBackend]) -> None:
        self.settings, self._load = settings, load
        self.service: ActService | None = None
        self._episodes: RLEpisodes | None = None
        self.served: PublishedPolicy | None = None
        self._pending: PublishedPolicy | None = None
        self._refused: dict[str, str] = {}  # hash of a policy -> why it is not served
        self._progress, self._trainers_size = RunProgress(), RunSize()
        self._too_few: str | None = None
        self._notes: list[str] = []
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="policy-follower", daemon=True)

    # ------------------------------------------------------------------ start and end

    def first_policy(self) -> PolicyBackend:
        """The policy to begin with, as soon as the Workers have published one."""
        announced = False
        while not self._stop.is_set():
            try:
                policy = read_latest(self.settings.policies)
                if policy is not None:
                    policy.verify()
            except DamagedPolicy as error:
                policy = newest_whole(self.settings.policies)
                note = f"not served: {error}; " + (
                    f"serving {policy.name} instead" if policy else "waiting for another"
                )
                if note not in self._notes:
                    self._notes.append(note)
                    logger.error("%s", note)
            if policy is not None:
                self.served = policy
                return self._loaded(policy)
            if not announced:
                logger.info("waiting for the first policy in %s; start syvla-ppo", self.settings.policies)
                announced = True
            self._stop.wait(self.settings.poll_s)
        raise RuntimeError("stopped while waiting for the first policy")

    def recording(self, embodiments: Mapping[str, Mapping[str, Any]]) -> RLEpisodes:
        """What records the server's episodes; called when the first policy is loaded.

        Raises:
            ValueError: The policy serves several robots.
        """
        if len(embodiments) != 1:
            raise ValueError(f"embodiment: a run trains one robot, the policy knows {sorted(embodiments)}; choose one")
        ((name, entry),) = embodiments.items()
        self._episodes = RLEpisodes(self.settings.run, name, entry)
        self._notes += self._episodes.recovered
        self._look_at_progress()
        self._follower.start()
        return self._episodes

    def stop(self) -> None:
        """Ends the thread that follows the Workers."""
        self._stop.set()
        if self._follower.ident is not None:
            self._follower.join()

    @property
    def episodes(self) -> RLEpisodes:
        """Raises RequestError before the first policy is there (503)."""
        if self._episodes is None or self.served is None:
            text = f"rl: no policy yet in {self.settings.policies}; start syvla-ppo"
            raise RequestError(text, status=503, cause="not_ready", retry_after=2)
        return self._episodes

    @property
    def size(self) -> RunSize:
        """Rollouts per update and updates, as set or as the trainer wants them."""
        settings, theirs = self.settings, self._trainers_size
        return RunSize(
            settings.rollouts_per_update or theirs.rollouts_per_update, settings.max_updates or theirs.max_updates
        )

    # ------------------------------------------------------------------ episodes

    def begin(self, request_id: str | None = None) -> dict[str, Any]:
        """Opens an episode with the policy in use.

        Raises:
            RequestError: A policy waits to be put in place, an update has all it needs (503), or the run is over (409).
        """
        episodes = self.episodes
        assert self.service is not None
        self.service.require_policy()
        with episodes.lock:
            assert self.served is not None
            version = self.served.policy_version
            if self._progress.updates >= self.size.max_updates:
                text = f"run: all {self.size.max_updates} updates are done; no further rollouts are needed"
                raise RequestError(text, status=409, cause="run_complete")
            if (coming := self._coming()) is not None:
                text = f"policy {coming}: comes next; no further episode of {self.served.name} begins"
                raise RequestError(text, status=503, cause="swapping", retry_after=1)
            if not any(e.request_id == request_id for e in episodes.episodes.values() if request_id is not None):
                self._require_need(episodes, version)
            name = episodes.begin(version, request_id)
            return {"episode_id": name, "policy_version": version, "version": self.served.version}

    def _coming(self) -> str | None:
        """Name of a policy that will replace the present one: it is loading, or the Workers have yet to publish it."""
        if self._pending is not None:
            return self._pending.name
        if self._progress.version is None:
            return None
        newest = f"v{self._progress.version:04d}"
        return None if (self.settings.policies / newest).is_dir() else newest

    def label(self, name: str, reward: int, override: bool, timed_out: bool | None = None) -> dict[str, Any]:
        """See `RLEpisodes.label`."""
        self._look_at_progress()
        consumed = name in self._progress.consumed
        self.episodes.label(name, reward, override=override, consumed=consumed, timed_out=timed_out)
        return {"episode_id": name, "state": self.state_of(name), "reward": reward}

    def abort(self, name: str, why: str) -> dict[str, Any]:
        """See `RLEpisodes.abort`."""
        self.episodes.abort(name, why, consumed=name in self._progress.consumed)
        return {"episode_id": name, "state": self.state_of(name)}

    def state_of(self, name: str) -> str:
        """State of a known episode, with what the Workers made of it."""
        state = self.episodes.episodes[name].state
        if state == SEALED and name in self._progress.consumed:
            return "consumed"
        return "dropped" if state == SEALED and name in self._progress.dropped else state

    def _require_need(self, episodes: RLEpisodes, version: str) -> None:
        done = self._progress.consumed | self._progress.dropped
        counted = (OPEN, ENDING, AWAITING, SEALED)
        made = [
            n for n, e in episodes.episodes.items() if e.version == version and e.state in counted and n not in done
        ]
        if len(made) >= self.size.rollouts_per_update + self.settings.ahead:
            waiting = sum(episodes.episodes[name].state == AWAITING for name in made)
            text = f"update {self._progress.updates + 1}: has its {len(made)} rollouts, of which {waiting} wait for a reward"
            raise RequestError(text, status=503, cause="enough_rollouts", retry_after=2)

    # ------------------------------------------------------------------ policies

    def publish(self, name: str) -> dict[str, Any]:
        """Serves the version in the folder of that name from the next moment on at which no episode is open.

        Raises:
            RequestError: It is not there, or not whole (422).
        """
        episodes = self.episodes
        try:
            policy = read_published(self.settings.policies, name)
            policy.verify()
        except DamagedPolicy as error:
            raise RequestError(str(error), cause="bad_policy") from None
        self._refused.pop(policy.policy_version, None)  # it is whole now
        point_latest(self.settings.policies, policy)
        episodes.journal.write("policy", version=policy.name, policy_version=policy.policy_version)
        return {"version": policy.version, "policy_version": policy.policy_version}

    def rollback(self, name: str | None = None) -> dict[str, Any]:
        """Serves an older version again, the one before the present one if none is named.

        Its rollouts count for the Workers only within their `max_staleness`.
        """
        self.episodes  # noqa: B018  refused before there is a policy
        assert self.served is not None
        before = [other for other in version_names(self.settings.policies) if other < self.served.name]
        if name is None and not before:
            raise RequestError(f"policy: none before {self.served.name} is kept", status=409, cause="bad_policy")
        return self.publish(name or before[-1])

    def _follow(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            try:
                self._look_at_progress()
                self.episodes.abort_silent(self.settings.silent_s)
                self._look_for_policy()
            except Exception:
                logger.exception("the run's folder could not be followed")

    def _look_at_progress(self) -> None:
        self._progress = read_progress(self.settings.run, self._progress)
        self._trainers_size = read_size(self.settings.run, self._trainers_size)
        before, self._too_few = self._too_few, None
        wanted, made = self._trainers_size.rollouts_per_update, self.size.rollouts_per_update + self.settings.ahead
        if made < wanted:
            self._too_few = (
                f"rollouts: at most {made} are made per update, the trainer waits for {wanted}; raise --rl-rollouts"
            )
            if self._too_few != before:
                logger.error("%s", self._too_few)

    def _look_for_policy(self) -> None:
        """Loads the policy that `LATEST.json` names, if it is another one, and puts it in place between episodes."""
        policy = None
        try:
            policy = read_latest(self.settings.policies)
            served = self.served.policy_version if self.served is not None else None
            if policy is None or policy.policy_version == served or policy.policy_version in self._refused:
                return
            self._pending = policy  # a rollout that began now would be of an old policy when it ends
            policy.verify()
            loaded = self._loaded(policy)
            assert self.service is not None
            loaded.warm_up(bool(self.service.settings.think))
        except Exception as error:  # whatever is wrong with it: the present policy goes on
            self._refuse(policy.policy_version if policy is not None else "LATEST", str(error))
            self._pending = None
            return
        try:
            while not self._stop.is_set():
                if self.episodes.when_idle(lambda: self._swap(policy, loaded)):
                    return
                self.episodes.abort_silent(self.settings.silent_s)
                time.sleep(min(0.1, self.settings.poll_s))
        finally:
            self._pending = None

    def _swap(self, policy: PublishedPolicy, loaded: PolicyBackend) -> None:
        assert self.service is not None
        try:
            self.service.swap_policy(loaded)
        except ValueError as error:
            self._refuse(policy.policy_version, str(error))
            return
        self.served = policy
        self.episodes.journal.write("serve", version=policy.name, policy_version=policy.policy_version)
        logger.info("now serving policy %s (%s)", policy.name, policy.policy_version)

    def _loaded(self, policy: PublishedPolicy) -> PolicyBackend:
        loaded = self._load(policy.folder)
        loaded.version = policy.policy_version
        return loaded

    def _refuse(self, key: str, why: str) -> None:
        if self._refused.get(key) != why:
            self._refused[key] = why
            logger.error("policy not served, the present one goes on: %s", why)
            self.episodes.journal.write("refused", policy_version=key, why=why)

    # ------------------------------------------------------------------ what is known

    def status(self) -> dict[str, Any]:
        """All that a person or a program wants to know about the run."""
        episodes = self.episodes
        assert self.served is not None
        progress = self._progress
        with episodes.lock:
            waiting = [
                {"episode_id": name, "instruction": e.facts.instruction, "ended_at": e.facts.ended_at}
                for name, e in episodes.episodes.items()
                if e.state == AWAITING and e.facts is not None
            ]
            counts = episodes.status()
            sealed = [name for name, e in episodes.episodes.items() if e.state == SEALED]
        used = sum(name in progress.consumed for name in sealed)
        stale = sum(name in progress.dropped for name in sealed)
        return {
            "episodes": {**counts, SEALED: counts[SEALED] - used - stale, "consumed": used, "dropped": stale},
            "queue": sorted(waiting, key=lambda entry: entry["ended_at"]),
            "policy": {
                "serving": self.served.name,
                "version": self.served.version,
                "policy_version": self.served.policy_version,
                "pending": self._pending.name if self._pending is not None else None,
                "refused": dict(self._refused),
            },
            "updates": progress.updates,
            "max_updates": self.size.max_updates,
            "rollouts_per_update": self.size.rollouts_per_update,
            "notes": [*self._notes, *([self._too_few] if self._too_few else [])],
        }
