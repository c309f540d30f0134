"""The page itself, in Gradio: what a person types, clicks and sees. A Space runs it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import gradio
import numpy as np

from syvla.evaluation.environments.tabletop.scene import COLORS
from syvla.serving.policies.in_process import SyVLAPolicy

from .charts import STYLE
from .scene import TABLE
from .session import MOST_INSTRUCTION, Moment, PlaySession
from .view import Games, shown

ANY = "any"
TITLE = "SyVLA on a simulated table"
INTRODUCTION = """
# {title}
A policy of {parameters:.1f} million parameters sees three small pictures, thinks in words, and acts. Type an instruction and
press **Run**. **Click into the large picture** to move the cube, also while the robot moves.

The policy was trained on one cube and the sentence `lift the <color> cube`; with more cubes, or other words, it is outside its
training, and you can watch what it makes of that.
"""


class Handlers:
    """What the page's events do. Annotations tell Gradio to pass request and click.

    Args:
        games: Of all people.
    """

    def __init__(self, games: Games) -> None:
        self._games = games
        self._heads: WeakKeyDictionary[PlaySession, np.ndarray] = WeakKeyDictionary()

    def start(self, request: gradio.Request) -> tuple[Any, ...]:
        session = self._games.of(request.session_hash)
        return (*self._values(session, session.moment), session.instruction)

    def draw(self, seed: float, color: str, extra: float, request: gradio.Request) -> tuple[Any, ...]:
        session = self._games.of(request.session_hash)
        with _readable_errors():
            moment = session.new_scene(int(seed), color=None if color == ANY else color, distractors=int(extra))
        return (*self._values(session, moment), session.instruction, int(seed) + 1)

    def move(self, request: gradio.Request, click: gradio.SelectData) -> tuple[Any, ...]:
        session = self._games.of(request.session_hash)
        return self._values(session, session.move_object(*session.scene.place_at_pixel(*click.index)))

    def put(self, x: float, y: float, request: gradio.Request) -> tuple[Any, ...]:
        session = self._games.of(request.session_hash)
        with _readable_errors():
            moment = session.move_object(x, y)
        return self._values(session, moment)

    def run(self, instruction: str, request: gradio.Request) -> Iterator[tuple[Any, ...]]:
        session = self._games.of(request.session_hash)
        with _readable_errors():
            for moment in session.run(instruction):
                yield self._values(session, moment)

    def stop(self, request: gradio.Request) -> tuple[Any, ...]:
        session = self._games.of(request.session_hash)
        return self._values(session, session.stop())

    def _values(self, session: PlaySession, moment: Moment) -> tuple[Any, ...]:
        """Values of the outputs. A picture that stands there already is not sent: Gradio would rewrite the file in use."""
        head, *rest = shown(session, moment)
        same = session in self._heads and np.array_equal(self._heads[session], head)
        self._heads[session] = head
        return (gradio.skip() if same else head, *rest)


def build_page(policy: SyVLAPolicy) -> Any:
    """The page as `gradio.Blocks`; `launch` it with `launch_options()`.

    Args:
        policy: From `load_tabletop_policy`.
    """
    on = Handlers(Games(policy))
    # Gradio keeps every picture as a file; those older than ten minutes go.
    with gradio.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 600)) as page:
        gradio.Markdown(INTRODUCTION.format(title=TITLE, parameters=policy.model.num_parameters() / 1e6))
        with gradio.Row():
            with gradio.Column(scale=3):
                blank = np.zeros((3, 4, 3), np.uint8)
                label = "Head camera: click to move the cube"
                head = gradio.Image(blank, label=label, elem_id="head", interactive=False, format="jpeg", buttons=[])
                wrists = gradio.HTML(elem_id="wrists")
                gradio.Markdown("**Chunk per joint**")
                joints = gradio.HTML(elem_id="joints")
            with gradio.Column(scale=2):
                instruction = gradio.Textbox(label="Instruction", max_length=MOST_INSTRUCTION, elem_id="instruction")
                with gradio.Row():
                    run = gradio.Button("Run", variant="primary", elem_id="run")
                    stop = gradio.Button("Stop", elem_id="stop")
                status = gradio.HTML(elem_id="status")
                gradio.Markdown("**Thought**")
                thought = gradio.HTML(elem_id="thought")
                with gradio.Accordion("Scene", open=True):
                    with gradio.Row():
                        seed = gradio.Number(1, label="Seed", precision=0, minimum=0, maximum=99999, elem_id="seed")
                        color = gradio.Dropdown([ANY, *COLORS], value=ANY, label="Color", elem_id="color")
                    extra = gradio.Slider(0, 2, value=0, step=1, label="More cubes", elem_id="extra")
                    draw = gradio.Button("Draw a new scene", elem_id="draw")
                    x = gradio.Slider(*TABLE["x"], value=0.02, step=0.005, label="x [m], away from the robot")
                    y = gradio.Slider(*TABLE["y"], value=0.08, step=0.005, label="y [m], to the robot's left")
                    put = gradio.Button("Put the cube there", elem_id="put")
        with gradio.Row():
            with gradio.Column():
                gradio.Markdown("**Intention Decoupling**: the chunk stands in for a demonstration's")
                heat = gradio.HTML(elem_id="decoupling")
            with gradio.Column():
                gradio.Markdown("**What the expert attends to**, half-way from noise to action")
                attention = gradio.HTML(elem_id="attention")
        outputs = [head, wrists, status, thought, joints, heat, attention]
        page.load(on.start, outputs=[*outputs, instruction])
        for event in (run.click, instruction.submit):
            event(on.run, [instruction], outputs, show_progress="hidden", concurrency_limit=None)
        stop.click(on.stop, outputs=outputs, show_progress="hidden")
        draw.click(on.draw, [seed, color, extra], [*outputs, instruction, seed], show_progress="hidden")
        put.click(on.put, [x, y], outputs, show_progress="hidden")
        head.select(on.move, outputs=outputs, show_progress="hidden")
    return page


def launch_options() -> dict[str, Any]:
    """Keyword arguments of `launch` that belong to the page: its style, and nothing that is fetched from elsewhere."""
    own = """
#wrists figure { display: inline-block; margin: 0 .8rem 0 0; }
#thought-text { font-style: italic; font-size: 1.15rem; min-height: 1.6rem; }
"""
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"css": STYLE + own, "theme": theme}


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Shows a ValueError of the body on the page in its own words."""
    try:
        yield
    except ValueError as error:
        raise gradio.Error(str(error)) from error
