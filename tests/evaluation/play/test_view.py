"""What the page shows: the values that its outputs get, without Gradio."""

import numpy as np
import pytest

from syvla.evaluation.play.charts import attention_bars, decoupling_map, joint_plots
from syvla.evaluation.play.introspection import Decoupling, ExpertAttention
from syvla.evaluation.play.session import Moment
from syvla.evaluation.play.view import MOST_SESSIONS, Games, shown


def test_every_output_gets_a_value_and_text_is_escaped(session):
    session.new_scene(2)
    moment = Moment(session.moment.pictures, "lift", thought="<script>alert(1)</script>", phase="thinking")
    head, wrists, status, thought, joints, heat, attention = shown(session, moment)
    assert head.shape == (288, 384, 3)
    assert wrists.count("data:image/jpeg;base64,") == 2
    assert ">thinking</b>" in status
    assert "<script>" not in thought
    assert "&lt;script&gt;" in thought
    assert all("appears" in hint.lower() for hint in (joints, heat, attention)), "nothing has happened yet"


def test_one_plot_per_joint_with_what_ran_and_what_is_to_come():
    chunk = np.arange(16, dtype=np.float32).reshape(8, 2)
    drawn = joint_plots(["left_joint_1", "left_gripper"], chunk[:3], chunk, executed=3)
    assert drawn.count("<svg") == 2
    assert "left joint 1</span><span>4.000 rad" in drawn, "the value that ran last"
    assert "left gripper</span><span>5.000 m" in drawn
    ran, coming = (
        drawn.split(f'class="{kind}" points="')[1].split('"')[0].split() for kind in ("syvla-ran", "syvla-next")
    )
    assert len(ran) == 3
    assert len(coming) == 1 + 5, "from the last that ran"


def test_the_heat_map_marks_what_training_would_mask():
    chunks = [Decoupling([3.0, 1.0, 2.0], [True, False, True]), Decoupling([0.5, 1.0, 2.0], [False, True, True])]
    rows = decoupling_map(chunks).split("<tr>")[1:]
    assert len(rows) == 3
    assert [row.count(">×<") for row in rows] == [1, 1, 0]
    assert "gradient norm 0.5" in rows[0]
    assert "/ 1.00)" in rows[0], "the strongest of a chunk is darkest"


def test_bars_are_shares():
    bars = attention_bars(ExpertAttention({"center": 0.25, "left_wrist": 0.125}, 0.125, 0.5, [0.75, 0.25]))
    for name, share in (("view center", "25.0%"), ("actions and time", "50.0%"), ("query 1", "75.0%")):
        assert f'<span>{name}</span><span><i style="width:{share}"></i></span><span>{share}</span>' in bars


def test_old_games_make_room_for_new_ones(policy):
    games = Games(policy)
    first = games.of("a")
    assert games.of("a") is first
    for number in range(MOST_SESSIONS):
        games.of(f"b{number}")
    assert games.of("a") is not first


@pytest.mark.parametrize("phase", ["waiting", "thinking", "acting", "lifted"])
def test_every_phase_has_its_color(session, phase):
    assert f">{phase}</b>" in shown(session, Moment(session.moment.pictures, phase=phase))[2]
