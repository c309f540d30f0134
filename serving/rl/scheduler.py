"""The Scheduler of a run of reinforcement learning (paper, appendix A, figure 4): hosts the policy that acts, hands out
episodes, and follows the policies that the Workers publish. Between the two lie only files. No torch.

A new policy is loaded beside the old one and put in place when no episode is open. From the moment at which the Workers
announce it in the ledger until it acts, no episode begins: its rollout would be too old for the next update.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syvla.serving.contract.requests import PolicyBackend, RequestError

from .episodes import RLEpisodes
from .ledger import AWAITING, CLAIMED, CONSUMED, DISCARDED, OPEN, SEALED, SET_ASIDE, Ledger, LedgerEntry, RunLedger
from .progress import RunSize, read_size
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

SHOWN_USED = 20
"""Newest rollouts in the status that updates have taken. Ours: as many as an update takes at most."""

SHOWN_NOTES = 5
"""Newest warnings of the trainer that the status holds. Ours."""


@dataclass(frozen=True)
class RLSettings:
    """Settings of a run.

    Attributes:
        run: Folder of the run, the trainer's `output_dir`: `policies/`, `rollouts/`, `journal.jsonl`.
        rollouts_per_update: Rollouts of a policy that an update takes; further ones do not begin. None: the trainer's number.
        max_updates: Updates of the run; None: the trainer's number.
        ahead: Rollouts that may be made beyond those; of use only where the trainer's `max_staleness` is above 0.
        graded_rewards: Whether people may give rewards between 0 and 1 as well.
        silent_s: Seconds after which the episode of a silent robot is aborted, so that it holds up no other robot and no
            policy. Every request of the episode begins them anew. Ours: several chunks, and an answer that takes long.
        poll_s: Seconds between looks at the run's folder.
    """

    run: Path
    rollouts_per_update: int | None = None
    max_updates: int | None = None
    ahead: int = 0
    graded_rewards: bool = False
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
        self._trainers_size: RunSize | None = None
        self._size_note: str | None = None
        self._notes: list[str] = []
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="policy-follower", daemon=True)

    # ------------------------------------------------------------------ start and end

    def first_policy(self) -> PolicyBackend:
        """The policy to begin with, as soon as the Workers have published one."""
        announced = False
        while not self._stop.is_set():
            try:
                policy = self._policy_to_serve(Ledger(self.settings.run).read())
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
        self._episodes.graded = self.settings.graded_rewards
        self._notes += self._episodes.recovered
        self._look_at_size()
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
        """What the run wants: as set, but never more rollouts than the trainer takes."""
        settings, theirs = self.settings, self._trainers_size or RunSize()
        wanted = settings.rollouts_per_update or theirs.rollouts_per_update
        if self._trainers_size is not None:
            wanted = min(wanted, theirs.rollouts_per_update)
        return replace(theirs, rollouts_per_update=wanted, max_updates=settings.max_updates or theirs.max_updates)

    @property
    def ahead(self) -> int:
        """Rollouts beyond an update's, none where the trainer would find them too old."""
        useless = self._trainers_size is not None and self._trainers_size.max_staleness == 0
        return 0 if useless else self.settings.ahead

    # ------------------------------------------------------------------ episodes

    def begin(self, request_id: str | None = None) -> dict[str, Any]:
        """Opens an episode with the policy in use.

        Raises:
            RequestError: A policy waits to be put in place, an update has all it needs (503), the policy that the run goes on
                from was refused, or the run is over (409).
        """
        episodes = self.episodes
        assert self.service is not None
        self.service.require_policy()
        with episodes.lock, episodes.ledger.exclusive() as known:
            assert self.served is not None
            version = self.served.policy_version
            if known.updates >= self.size.max_updates:
                text = f"run: all {self.size.max_updates} updates are done; no further rollouts are needed"
                raise RequestError(text, status=409, cause="run_complete")
            self._require_present(known)
            if not any(e.request_id == request_id for e in episodes.episodes.values() if request_id is not None):
                self._require_need(known, version)
            name = episodes.begin(version, request_id)
            return {"episode_id": name, "policy_version": version, "version": self.served.version}

    def _require_present(self, known: RunLedger) -> None:
        """Raises RequestError unless the policy in use is the one that the run goes on from."""
        assert self.served is not None
        coming = self._pending.name if self._pending is not None else None
        wanted = known.policy_version
        if wanted is None:  # no trainer has announced one
            with suppress(DamagedPolicy):
                latest = read_latest(self.settings.policies)
                if latest is not None and latest.policy_version not in {self.served.policy_version, *self._refused}:
                    coming = coming or latest.name
        elif wanted != self.served.policy_version:
            coming = f"v{known.current:04d}"
            if (why := self._refused.get(wanted)) is not None:
                text = (
                    f"policy {coming}: cannot be served ({why}); rollouts of {self.served.name} would be too old for the "
                    "trainer: publish it anew, or go back with POST /rl/rollback"
                )
                raise RequestError(text, status=409, cause="bad_policy")
        if coming is not None:
            text = f"policy {coming}: comes next; no further episode of {self.served.name} begins"
            raise RequestError(text, status=503, cause="swapping", retry_after=1)

    def label(self, name: str, reward: float, override: bool, timed_out: bool | None = None) -> dict[str, Any]:
        """See `RLEpisodes.label`."""
        self.episodes.label(name, reward, override=override, timed_out=timed_out)
        return {"episode_id": name, "state": self.state_of(name), "reward": reward}

    def abort(self, name: str, why: str) -> dict[str, Any]:
        """See `RLEpisodes.abort`."""
        self.episodes.abort(name, why)
        return {"episode_id": name, "state": self.state_of(name)}

    def discard(self, name: str, why: str) -> dict[str, Any]:
        """See `RLEpisodes.discard`."""
        self.episodes.discard(name, why)
        return {"episode_id": name, "state": self.state_of(name)}

    def restore(self, name: str) -> dict[str, Any]:
        """See `RLEpisodes.restore`."""
        self.episodes.restore(name)
        return {"episode_id": name, "state": self.state_of(name)}

    def state_of(self, name: str) -> str:
        """State of a known episode, with what the Workers made of it."""
        return self.episodes.state_of(name)

    def _require_need(self, known: RunLedger, version: str) -> None:
        counted = known.names(OPEN, AWAITING, SEALED, CLAIMED)
        made = [name for name in counted if known.rollouts[name].policy_version == version]
        if len(made) >= self.size.rollouts_per_update + self.ahead:
            waiting = sum(known.rollouts[name].state == AWAITING for name in made)
            text = f"update {known.updates + 1}: has its {len(made)} rollouts, of which {waiting} wait for a reward"
            raise RequestError(text, status=503, cause="enough_rollouts", retry_after=2)

    # ------------------------------------------------------------------ policies

    def publish(self, name: str) -> dict[str, Any]:
        """Serves the version in the folder of that name from the next moment on at which no episode is open.

        Another version than the one that the run goes on from makes this a rollback to it.

        Raises:
            RequestError: It is not there, or not whole (422).
        """
        episodes = self.episodes
        try:
            policy = read_published(self.settings.policies, name)
            policy.verify()
        except DamagedPolicy as error:
            raise RequestError(str(error), cause="bad_policy") from None
        with episodes.ledger.exclusive() as known:
            if known.current is not None and known.policy_version != policy.policy_version:
                if policy.policy_version not in known.versions:
                    text = f"policy {name}: the trainer of this run never announced it; it has {known.versions[-5:]}"
                    raise RequestError(text, cause="bad_policy")
                number = len(known.versions) - 1 - known.versions[::-1].index(policy.policy_version)
                episodes.ledger.write(
                    "rollback", version=number, policy_version=policy.policy_version, before=known.current
                )
            else:
                episodes.ledger.write("policy", version=policy.name, policy_version=policy.policy_version)
            self._refused.pop(policy.policy_version, None)  # it is whole now
            point_latest(self.settings.policies, policy)
        return {"version": policy.version, "policy_version": policy.policy_version}

    def rollback(self, name: str | None = None) -> dict[str, Any]:
        """Brings the whole run back to an older version: the one before the present one if none is named.

        On return it is on disk. The server acts with that version as soon as no episode is open, also after a restart; the
        trainer goes on from its weights with fresh moments of its optimizer, and gives up an update that it works on.
        Labeled rollouts of the versions that were left are set aside, see `RLEpisodes.restore`.

        Raises:
            RequestError: There is none before (409), or it is not there or not whole (422).
        """
        self.episodes  # noqa: B018  refused before there is a policy
        assert self.served is not None
        if name is None:
            known, kept = self.episodes.ledger.read(), version_names(self.settings.policies)
            before = [f"v{number:04d}" for number in known.lineage[:-1]]
            if known.current is None:
                before = [other for other in kept if other < self.served.name]
            before = [other for other in before if other in kept]
            if not before:
                present = self.served.name if known.current is None else f"v{known.current:04d}"
                raise RequestError(f"policy: none before {present} is kept", status=409, cause="bad_policy")
            name = before[-1]
        return self.publish(name)

    def _follow(self) -> None:
        while not self._stop.wait(self.settings.poll_s):
            try:
                self._look_at_size()
                self.episodes.abort_silent(self.settings.silent_s)
                self._look_for_policy()
            except Exception:
                logger.exception("the run's folder could not be followed")

    def _look_at_size(self) -> None:
        self._trainers_size = read_size(self.settings.run, self._trainers_size)
        self.episodes.instructions = self.size.instructions
        before, self._size_note = self._size_note, self._size_problem()
        if self._size_note is not None and self._size_note != before:
            logger.error("%s", self._size_note)

    def _size_problem(self) -> str | None:
        """What of the server's settings does not fit the trainer's; None if all does."""
        theirs, made = self._trainers_size, self.settings.rollouts_per_update
        if theirs is None:
            return None
        if made is not None and made + self.ahead < theirs.rollouts_per_update:
            return (
                f"rollouts: at most {made + self.ahead} are made per update, the trainer waits for "
                f"{theirs.rollouts_per_update}; raise --rl-rollouts"
            )
        if made is not None and made > theirs.rollouts_per_update:
            return (
                f"rollouts: --rl-rollouts {made} is more than the trainer takes; {theirs.rollouts_per_update} are made per "
                "update, the others would be too old for the next one"
            )
        if self.settings.ahead > self.ahead:
            return (
                "rollouts: --rl-ahead has no effect, since the trainer takes none of an older policy (max_staleness 0)"
            )
        return None

    def _policy_to_serve(self, known: RunLedger) -> PublishedPolicy | None:
        """The policy that the run goes on from, as soon as it is published; without a trainer's word what `LATEST.json` names.

        Raises:
            DamagedPolicy: It is another one than was announced, or has no facts.
        """
        if known.current is None:
            return read_latest(self.settings.policies)
        name = f"v{known.current:04d}"
        if name not in version_names(self.settings.policies):
            return None  # announced, and still being written
        policy = read_published(self.settings.policies, name)
        return policy if policy.policy_version == known.policy_version else None

    def _look_for_policy(self) -> None:
        """Loads the policy that the run goes on from, if it is another one, and puts it in place between episodes."""
        policy = None
        served = self.served.policy_version if self.served is not None else None
        try:
            policy = self._policy_to_serve(self.episodes.ledger.read())
            if policy is None or policy.policy_version == served or policy.policy_version in self._refused:
                return
            self._pending = policy  # a rollout that began now would be of an old policy when it ends
            policy.verify()
            loaded = self._loaded(policy)
            assert self.service is not None
            loaded.warm_up(bool(self.service.settings.think))
        except Exception as error:  # whatever is wrong with it: the present policy goes on
            self._refuse(policy.policy_version if policy is not None else "LATEST", str(error))
            return
        try:
            while not self._stop.is_set() and self._still_wanted(policy):
                if self.episodes.when_idle(lambda: self._swap(policy, loaded)):
                    return
                self.episodes.abort_silent(self.settings.silent_s)
                time.sleep(min(0.1, self.settings.poll_s))
        finally:
            with self.episodes.lock:
                self._pending = None

    def _still_wanted(self, policy: PublishedPolicy) -> bool:
        """False once the run was brought to another version while this one waited for the end of an episode."""
        known = self.episodes.ledger.read()
        return known.policy_version in (None, policy.policy_version)

    def _swap(self, policy: PublishedPolicy, loaded: PolicyBackend) -> None:
        """Called with the lock on the episodes, so that nobody sees the new policy without its name."""
        assert self.service is not None
        try:
            self.service.swap_policy(loaded)
        except ValueError as error:
            self._refuse(policy.policy_version, str(error))
            return
        self.served, self._pending = policy, None
        self.episodes.ledger.write("serve", version=policy.name, policy_version=policy.policy_version)
        logger.info("now serving policy %s (%s)", policy.name, policy.policy_version)

    def _loaded(self, policy: PublishedPolicy) -> PolicyBackend:
        loaded = self._load(policy.folder)
        loaded.version = policy.policy_version
        return loaded

    def _refuse(self, key: str, why: str) -> None:
        with self.episodes.lock:  # who reads that it is refused finds it no longer pending
            known, self._refused[key], self._pending = self._refused.get(key), why, None
        if known != why:
            logger.error("policy not served, the present one goes on: %s", why)
            self.episodes.ledger.write("refused", policy_version=key, why=why)

    # ------------------------------------------------------------------ what is known

    def status(self) -> dict[str, Any]:
        """All that a person or a program wants to know about the run."""
        episodes = self.episodes
        known, size = episodes.ledger.read(), self.size
        with episodes.lock:
            assert self.served is not None
            ended = {name: e.facts for name, e in episodes.episodes.items() if e.facts is not None}
            states = {name: episodes.state_of(name, known) for name in ended}
            counts = episodes.status()
            policy = {
                "serving": self.served.name,
                "version": self.served.version,
                "policy_version": self.served.policy_version,
                "pending": self._pending.name if self._pending is not None else None,
                "refused": dict(self._refused),
                "rollbacks": len(known.rollbacks),
            }

        def listed(state: str) -> list[dict[str, Any]]:
            found = []
            for name, facts in ended.items():
                if states[name] == state:
                    entry = known.rollouts.get(name, LedgerEntry())
                    said = {"reward": facts.outcome, "labeled_at": entry.labeled_at, "why": entry.why}
                    found.append(
                        {"episode_id": name, "instruction": facts.instruction, "ended_at": facts.ended_at, **said}
                    )
            return sorted(found, key=lambda entry: float(entry["ended_at"]))

        return {
            "episodes": counts,
            "graded": episodes.graded,
            "running": episodes.running(),
            "queue": listed(AWAITING),
            "labeled": listed(SEALED),
            "used": [*listed(CLAIMED), *listed(CONSUMED)][-SHOWN_USED:],
            "set_aside": listed(SET_ASIDE),
            "discarded": listed(DISCARDED),
            "policy": policy,
            "updates": known.updates,
            "max_updates": size.max_updates,
            "rollouts_per_update": size.rollouts_per_update,
            "notes": [*self._notes, *([self._size_note] if self._size_note else []), *known.notes[-SHOWN_NOTES:]],
        }
