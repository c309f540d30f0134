"""What the page shows of a moment, and the games of the people who have it open; nothing here needs Gradio."""

from __future__ import annotations

import base64
import html
import io
from collections import OrderedDict
from typing import Any

import numpy as np
from PIL import Image

from syvla.evaluation.environments.tabletop.scene import SIDES
from syvla.serving.policies.in_process import SyVLAPolicy

from .charts import attention_bars, decoupling_map, joint_plots
from .session import Moment, PlaySession

MOST_SESSIONS = 8
"""Scenes kept; the one that was used longest ago goes first, and its person gets a new one."""

PHASE_COLORS = {"waiting": "#666", "thinking": "#2b6cb0", "acting": "#b45309", "lifted": "#177a3c"}


class Games:
    """The sessions of all people who have the page open.

    Args:
        policy: Which they share.
    """

    def __init__(self, policy: SyVLAPolicy) -> None:
        self._policy = policy
        self._sessions: OrderedDict[str, PlaySession] = OrderedDict()

    def of(self, name: str) -> PlaySession:
        """The session of one browser tab, a new one where it has none."""
        session = self._sessions.pop(name, None) or PlaySession(self._policy)
        self._sessions[name] = session
        while len(self._sessions) > MOST_SESSIONS:
            _, oldest = self._sessions.popitem(last=False)
            oldest.stop()
        return session


def shown(session: PlaySession, moment: Moment) -> tuple[Any, ...]:
    """A moment as the values of the page's outputs: head picture, wrists, status, thought, joints, heat map, attention."""
    return (
        moment.pictures["head"],
        "".join(_wrist(side, moment.pictures[f"{side}_wrist"]) for side in SIDES),
        _status(session, moment),
        f'<p id="thought-text">{html.escape(moment.thought) or "&nbsp;"}</p>',
        joint_plots(session.action_names, moment.trace, moment.chunk, moment.executed),
        decoupling_map(moment.decoupling),
        attention_bars(moment.attention),
    )


def _wrist(side: str, picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="{source}" alt="{side} wrist camera"><figcaption>{side} wrist</figcaption></figure>'


def _status(session: PlaySession, moment: Moment) -> str:
    x, y = session.scene.object_place
    style = f"color:#fff;background:{PHASE_COLORS[moment.phase]};padding:.15rem .7rem;border-radius:1rem"
    badge = f'<b id="state" style="{style}">{moment.phase}</b>'
    return f"<p>{badge} step {moment.steps} · cube at x {x:+.3f} m, y {y:+.3f} m</p>"
