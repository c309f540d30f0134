"""The page holds everything it shows, escapes what it quotes, and draws the bars where the numbers are."""

import io
import re
from html.parser import HTMLParser

from PIL import Image

from syvla.evaluation.episode_records import EpisodeRecord
from syvla.evaluation.report_page import ReportPage, loss_curve_png
from syvla.evaluation.success_rate import SuccessRate

HISTORY = [{"step": 10 * i, "loss": 2.0 / i, "action_loss": 1.0 / i, "learning_rate": 1e-4} for i in range(1, 20)]


class Resources(HTMLParser):
    """Collects what the page would load."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_page_is_self_contained_and_escapes_text(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not really a video")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    record = EpisodeRecord("lift", 7, False, 12, "lift <it>", "time limit", thoughts=[(0, "<script>alert(1)</script>")])
    page = ReportPage(
        "A & B",
        "What was done.",
        rates={"before": SuccessRate(0, 40), "after": SuccessRate(30, 40)},
        loss_history=HISTORY,
        recordings=[(record, tmp_path / "a.mp4")],
        code='load("<path>")',
        facts={"seconds": "12"},
    )
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    resources = Resources()
    resources.feed(text)
    assert len(resources.sources) == 3, "video, contact sheet, loss curve"
    assert all(source.startswith("data:") for source in resources.sources)
    assert "script" not in resources.tags
    assert "lift &lt;it&gt;: time limit after 12 steps (seed 7)" in text
    assert "30/40 = 75.0%" in text
    low, width = map(float, re.findall(r"left:([\d.]+)%;width:([\d.]+)%", text)[1])
    assert abs(low - 100 * SuccessRate(30, 40).interval[0]) < 0.1
    assert abs(low + width - 100 * SuccessRate(30, 40).interval[1]) < 0.1


def test_parts_without_content_are_left_out(tmp_path):
    ReportPage("Title", "Lead.").write(tmp_path / "index.html")
    assert "<h2>" not in (tmp_path / "index.html").read_text()


def test_loss_curve_is_a_picture_of_training_losses_only():
    assert Image.open(io.BytesIO(loss_curve_png(HISTORY))).width > 500
    assert (
        loss_curve_png([{"train_loss": 1.0, "step": 3}, {"eval_loss": 1.0, "step": 3}, {"loss": 0.0, "step": 3}])
        is None
    )
    assert loss_curve_png([]) is None
