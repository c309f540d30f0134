"""Puts the run's ledger in agreement with the checkpoint that a trainer goes on with.

A kill may come between a checkpoint and the event that tells of it, and a person may go on with an older checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from syvla.serving.rl.ledger import CLAIMED, CONSUMED, Ledger, RunLedger

from .run_state import RLState

logger = logging.getLogger(__name__)


def reconcile(ledger: Ledger, state: RLState, working_on: Collection[str]) -> None:
    """Makes the ledger say what the checkpoint says; a rollback that the checkpoint has not followed stays to be followed.

    Args:
        ledger: Of the run.
        state: Of the checkpoint; its number of rollbacks is put right where the ledger is another one.
        working_on: Rollouts of the update in the middle of which the checkpoint stands.
    """
    with ledger.exclusive() as known:
        waiting = known.rollbacks[-1] if len(known.rollbacks) > state.rollbacks else None
        _agree_on_policies(ledger, known, state)
        settle(ledger, known, state)
        gone = [name for name in known.names(CONSUMED) if name not in state.consumed]
        ledger.release(gone, "the update that used it is no part of the checkpoint that the trainer went on with")
        idle = [name for name in known.names(CLAIMED) if name not in working_on]
        ledger.release(idle, "the trainer was started again before its update was saved")
        if taken := [name for name in working_on if name not in known.names(CLAIMED)]:
            ledger.claim(state.updates, taken)
        if known.current is not None and known.updates != state.updates:
            _resume(ledger, state)
        if waiting is None or waiting >= len(state.versions):
            if waiting is not None:
                logger.error("the rollback to version %d is not followed: the checkpoint does not know it", waiting)
            state.rollbacks = len(known.rollbacks)
        elif known.current != waiting:
            ledger.write("rollback", version=waiting, policy_version=state.versions[waiting], before=known.current)


def settle(ledger: Ledger, known: RunLedger, state: RLState) -> None:
    """Notes which rollouts the updates of a checkpoint have used."""
    told = set(known.names(CONSUMED))
    if used := [name for name in state.consumed if name not in told]:
        ledger.consume(max(state.updates - 1, 0), used)


def _agree_on_policies(ledger: Ledger, known: RunLedger, state: RLState) -> None:
    """Announces what a crash kept from the ledger, and leaves what a checkpoint before it does not know."""
    published = state.versions if state.published else state.versions[:-1]
    same = 0
    while same < min(len(known.versions), len(state.versions)) and known.versions[same] == state.versions[same]:
        same += 1
    for number in range(same, len(published)):
        place = state.lineage.index(number) if number in state.lineage else 0
        ledger.announce(number, published[number], state.lineage[place - 1] if place else None)
    if len(known.versions) > len(state.versions):
        _resume(ledger, state)


def _resume(ledger: Ledger, state: RLState) -> None:
    policy_version = state.versions[state.version]
    ledger.write("resume", version=state.version, policy_version=policy_version, updates=state.updates)
