"""Makes README's moving picture, docs/figures/play.webp, from real runs of the checkout's own policy.

    .venv/bin/python scripts/make_moving_picture.py

Three of the starts that it solves, and that no demonstration uses: views, instruction, thought, the acting arm's chunk,
outcome.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from syvla.evaluation.play.command import find_checkpoint
from syvla.evaluation.play.session import Moment, PlaySession, load_tabletop_policy

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "figures" / "play.webp"
SIZE = (800, 456)
HEAD, WRIST = (432, 324), (212, 96)  # (width, height)
STEP_MS, THOUGHT_MS, LAST_MS = 100, 80, 1800  # the robot moves at 10 Hz, so its motion is in real time
SHOWN = [0, 16, 25]  # different colors and arms, of the starts that the policy solves
MOST_BYTES = 3_000_000
INK, FAINT, PAPER = "#1c1f24", "#6b7280", "#ffffff"
RAN, COMING = "#2b6cb0", "#d97706"
PHASES = {"waiting": FAINT, "thinking": RAN, "acting": "#b45309", "lifted": "#177a3c"}


def frames(session: PlaySession, seeds: Sequence[int]) -> Iterator[tuple[Image.Image, int]]:
    """Pictures and how long each is shown, in milliseconds."""
    for seed in seeds:
        session.new_scene(seed)
        tokens = 0
        moments = list(_sharp(session))
        for views, moment in moments[:-1]:
            tokens = tokens + 1 if moment.phase == "thinking" else 0
            if moment.phase != "thinking" or tokens % 2:
                yield draw(session, views, moment), THOUGHT_MS if moment.phase == "thinking" else STEP_MS
        yield draw(session, *moments[-1]), LAST_MS


def _sharp(session: PlaySession) -> Iterator[tuple[dict[str, Image.Image], Moment]]:
    """Moments of a run with smooth pictures at the size in which they are shown."""
    step, views = -1, {}
    for moment in session.run(session.instruction):
        if moment.steps != step:
            step, env = moment.steps, session.scene.env
            sizes = {camera: HEAD if camera == "head" else WRIST for camera in env.cameras}
            views = {
                camera: Image.fromarray(env.render_camera(camera, height, width, 2))
                for camera, (width, height) in sizes.items()
            }
        yield views, moment


def draw(session: PlaySession, views: dict[str, Image.Image], moment: Moment) -> Image.Image:
    """One frame."""
    frame = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(frame)
    small, large = ImageFont.load_default(13), ImageFont.load_default(17)
    frame.paste(views["head"], (8, 8))
    frame.paste(views["left_wrist"], (8, 340))
    frame.paste(views["right_wrist"], (228, 340))
    for place, name in (((14, 12), "head camera"), ((14, 438), "left wrist"), ((234, 438), "right wrist")):
        pen.text(place, name, FAINT, small)
    left = 456
    pen.text((left, 8), "instruction", FAINT, small)
    pen.text((left, 26), moment.instruction, INK, large)
    pen.text((left, 62), "thought", FAINT, small)
    pen.text((left, 80), moment.thought, RAN, large)
    pen.rounded_rectangle((left, 116, left + 100, 140), 12, PHASES[moment.phase])
    pen.text((left + 50, 128), moment.phase, PAPER, small, anchor="mm")
    pen.text((left + 112, 121), f"step {moment.steps}", FAINT, small)
    arm = session.scene.env.layout.arms[0]
    pen.text((left, 154), f"chunk of the {arm} arm: executed, and to come", FAINT, small)
    for number, name in enumerate(name for name in session.action_names if name.startswith(arm)):
        corner = (left + 168 * (number % 2), 174 + 68 * (number // 2))
        label = name.removeprefix(f"{arm}_").replace("_", " ")
        _plot(pen, corner, label, small, moment, session.action_names.index(name))
    return frame


def _plot(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], label: str, font: object, moment: Moment, index: int
) -> None:
    x, y = corner
    width, height = 156, 44
    pen.text(corner, label, FAINT, font)  # type: ignore[arg-type]
    pen.rectangle((x, y + 17, x + width, y + 17 + height), "#f2f4f7")
    if not len(moment.chunk):
        return
    ran = moment.trace[:, index] if len(moment.trace) else np.zeros(0)
    values = np.concatenate([ran, moment.chunk[moment.executed :, index]])
    low, high = values.min() - 0.02, values.max() + 0.02
    steps = x + np.arange(len(values)) * width / 34
    heights = y + 17 + height - (values - low) / (high - low) * height
    points = [(float(a), float(b)) for a, b in zip(steps, heights, strict=True) if a <= x + width]
    pen.line(points[max(0, len(ran) - 1) :], COMING, 2)
    pen.line(points[: len(ran)], RAN, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python scripts/make_moving_picture.py", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, help="WebP file (default: %(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="start to show; repeatable (default: 0, 16 and 25)")
    arguments = parser.parse_args(argv)
    session = PlaySession(load_tabletop_policy(find_checkpoint(None)))
    pictures, times = zip(*frames(session, arguments.seed or SHOWN), strict=True)
    pictures[0].save(
        arguments.output, save_all=True, append_images=pictures[1:], duration=list(times), loop=0, quality=60, method=4
    )
    size = arguments.output.stat().st_size
    print(f"{arguments.output}: {len(pictures)} frames, {sum(times) / 1000:.1f} s, {size} bytes")
    return 0 if size <= MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
