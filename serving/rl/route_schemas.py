"""OpenAPI descriptions of the routes of a run of reinforcement learning."""

from __future__ import annotations

from typing import Any

from syvla.serving.server.route_schemas import (
    BODY,
    FLAG,
    JSON,
    NULLABLE_NUMBER,
    NULLABLE_TEXT,
    Schema,
    described,
    fields,
    integer,
    lists,
    record,
    texts,
)

from .ledger import STATES

PAGE = described("rl_page", "The page for the person who labels", "text/html", is_open=True)
_STATE = {"episode_id": texts(), "state": texts(*STATES)}
_VERSION_NAME: Schema = {"type": "string", "pattern": r"^v\d{4,9}$"}
_PICTURES: Schema = {"type": "object", "additionalProperties": texts()}
_LISTED = lists(record({"episode_id": texts(), "instruction": texts(), "ended_at": {"type": "number"}}))


def of_run(
    name: str, summary: str, answer: Schema, *refusals: int, body: Schema | None = None, status: int = 200
) -> Any:
    """What `described` gives for a route of a run: it needs a policy and a disk, and may read a small JSON body."""
    bodies = None if body is None else {JSON: body}
    more = () if body is None else BODY
    return described(name, summary, answer, body=bodies, refusals=(*refusals, *more, 503, 507), status=status)


STATUS = of_run(
    "rl_status",
    "State of the run",
    record(
        {
            "episodes": {"type": "object", "additionalProperties": integer(0)},
            "graded": FLAG,
            "running": lists(record({"episode_id": texts(), "instruction": texts(), "takeover": FLAG})),
            **dict.fromkeys(("queue", "labeled", "used", "set_aside", "discarded"), _LISTED),
            "policy": record(
                {"serving": texts(), "version": integer(0), "policy_version": texts()}, pending=NULLABLE_TEXT
            ),
            "updates": integer(0),
            "max_updates": integer(1),
            "rollouts_per_update": integer(1),
            "notes": lists(texts()),
        }
    ),
)
BEGIN = of_run(
    "rl_begin",
    "Opens an episode; the same request_id gets the same episode",
    record({"episode_id": texts(), "policy_version": texts(), "version": integer(0)}),
    409,
    body=fields(request_id=texts()),
    status=201,
)
EPISODE = of_run(
    "rl_episode",
    "An episode; once it is over with its facts and last frames",
    record(
        {**_STATE, "policy_version": texts(), "why": texts(), "frames": lists(_PICTURES)},
        instruction=texts(),
        outcome=NULLABLE_NUMBER,
        ended=texts(),
        decisions=integer(0),
        corrections=integer(0),
    ),
    404,
)
FRAMES = of_run(
    "rl_frames",
    "Frames of an ended episode from number `first` on",
    record(
        {
            "episode_id": texts(),
            "count": integer(0),
            "fps": {"type": "number"},
            "frames": lists(
                record({"views": _PICTURES, "thought": texts(), "human": FLAG, "decision": {"type": "integer"}})
            ),
        }
    ),
    *(404, 422),
)
GUIDANCE = of_run("rl_guidance", "What guided the update that took the episode", {"type": "object"}, 404, 500)
END = of_run(
    "rl_end",
    "Seals an episode, which then waits for a reward",
    record({**_STATE, "decisions": integer(0)}),
    *(404, 409, 410),
    body=fields(executed_steps={"type": "integer"}, timed_out=FLAG),
)
REWARD = of_run(
    "rl_reward",
    "Labels an ended episode: 1 or 0, in graded runs any number between",
    record({**_STATE, "reward": {"type": "number"}}),
    *(404, 409, 410),
    body=fields(("reward",), reward={"type": "number", "minimum": 0, "maximum": 1}, override=FLAG, timed_out=FLAG),
)
ABORT = of_run(
    "rl_abort",
    "Drops an episode that nobody has labeled",
    record(_STATE),
    *(404, 409),
    body=fields(reason=texts()),
)
STOP = of_run("rl_stop", "Ends a running episode by a person's word", record(_STATE), 404, 409, 410, body=fields())
TAKEOVER = of_run(
    "rl_takeover",
    "Tells the robot's client that a person takes over, or no longer",
    record({"episode_id": texts(), "takeover": FLAG}),
    *(404, 409, 410),
    body=fields(on=FLAG),
)
DISCARD = of_run(
    "rl_discard",
    "Takes an ended rollout out of the run",
    record(_STATE),
    *(404, 409, 410),
    body=fields(reason=texts()),
)
RESTORE = of_run("rl_restore", "Brings a rollout back", record(_STATE), 404, 409, body=fields())
_POLICY = record({"version": integer(0), "policy_version": texts()})
POLICY = of_run(
    "rl_policy",
    "Serves a version once no episode is open",
    _POLICY,
    409,
    body=fields(("version",), version=_VERSION_NAME),
)
ROLLBACK = of_run(
    "rl_rollback",
    "Brings the run back to an older version, the one before if none is named",
    _POLICY,
    409,
    body=fields(version=_VERSION_NAME),
)
