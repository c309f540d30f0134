"""Proposals of a vision server: asked many at a time, kept one by one, and never among the dataset's own sub-tasks."""

import io
import json
import threading

import pytest
from dataset_recordings import record
from PIL import Image
from vision_stand_in import VisionStandIn, pictures_of

from syvla.processing.annotation.annotator import Annotator
from syvla.processing.annotation.command import main
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.processing.annotation.proposing import Proposer
from syvla.processing.annotation.vision_server import MAX_ANSWER_BYTES, ServerError, VisionServer, load_prompts
from syvla.processing.robot_data.robot_dataset import RobotDataset

GOOD = json.dumps({"subtasks": [{"start": 0, "text": "reach for task 0"}, {"start": 0.3, "text": "finish task 1"}]})


@pytest.fixture
def annotator(dataset):
    opened = Annotator(EpisodeData(dataset))
    yield opened
    opened.close()


@pytest.fixture
def stand_in():
    """Starts a server: `stand_in(answers, ...) -> VisionStandIn`."""
    held = []

    def start(answers, **options):
        context = VisionStandIn(answers, **options).running()
        held.append(context)
        return context.__enter__()

    yield start
    for context in held:
        context.__exit__(None, None, None)


def test_a_question_shows_all_cameras_at_times_of_the_episode(annotator, stand_in):
    server = stand_in([GOOD])
    annotator.change("mark", {2: [[0, "reach"]]})
    proposer = Proposer(annotator, VisionServer(server.url), load_prompts(None), frames=3)
    assert proposer.propose(0) is None
    found = annotator.proposals.get(0)
    assert (found.source, found.subtasks) == ("model qwen", ((0, "reach for task 0"), (3, "finish task 1")))
    (request,) = server.requests
    assert (request["model"], request["temperature"]) == ("qwen", 0.0)
    captions, pictures = pictures_of(request)
    assert captions == ["t = 0.00 s", "t = 0.20 s", "t = 0.40 s"]
    picture = Image.open(io.BytesIO(pictures[1]))
    assert picture.size == (512, 256), "two square cameras side by side"
    assert abs(picture.getpixel((10, 100))[0] - 16) <= 4, "frame 2 of the head camera is 8 * 2 bright"
    assert abs(picture.getpixel((500, 100))[0] - 239) <= 4
    question = request["messages"][1]["content"][-1]["text"]
    assert "The instruction was: task 0\nThe episode takes 0.50 s." in question
    assert "Sub-tasks in other episodes of this instruction: reach\n" in question
    assert '{"subtasks": [{"start": 0.0' in question


def test_a_second_question_may_doubt_the_first_answer(annotator, stand_in):
    server = stand_in(
        [GOOD, '{"fits": false, "why": "the gripper\\nnever closes"}', GOOD, "yes", GOOD, '{"fits": true}']
    )
    proposer = Proposer(annotator, VisionServer(server.url), load_prompts(None), verify=True)
    for episode in range(3):
        assert proposer.propose(episode) is None
    assert "reach for task 0" in server.requests[1]["messages"][1]["content"][-1]["text"]
    doubts = [[one for one in annotator.proposals.get(e).problems if "model" in one] for e in range(3)]
    assert [len(one) for one in doubts] == [1, 1, 0]
    assert doubts[0] == ["the model doubts that they fit: the gripper\nnever closes"]
    assert doubts[1][0].startswith("the model did not say whether they fit")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("no idea", "the model's answer cannot be used: expected a JSON object"),
        ((404, b"no such model \x1b[31m"), r"status 404: no such model \[31m"),
        ((200, b"<html>"), "expected a JSON object; is this an OpenAI-compatible server"),
        ((200, b'{"choices": []}'), "the answer has no text"),
        ((200, b" " * (MAX_ANSWER_BYTES + 1)), "the answer has more than"),
        ((302, b""), "status 302"),
    ],
)
def test_answers_that_cannot_be_used_are_named_and_nothing_is_kept(annotator, stand_in, answer, message):
    proposer = Proposer(annotator, VisionServer(stand_in([answer]).url), load_prompts(None))
    problem = proposer.propose(0)
    with pytest.raises(AssertionError, match=message):
        assert problem is None, problem
    assert annotator.proposals.episodes() == []


def test_a_busy_server_is_asked_again(annotator, stand_in):
    server = stand_in([(503, b"busy"), (429, b"slow down"), GOOD])
    assert Proposer(annotator, VisionServer(server.url), load_prompts(None)).propose(0) is None
    assert len(server.requests) == 3


def test_questions_are_on_their_way_together(annotator, stand_in):
    server = stand_in(lambda _: GOOD)
    server.barrier = threading.Barrier(3)  # no answer before three are asked
    proposer = Proposer(annotator, VisionServer(server.url), load_prompts(None))
    assert dict(proposer.propose_many([0, 1, 2], 3)) == {0: None, 1: None, 2: None}
    assert server.most_at_once == 3


def test_models_keys_and_addresses_that_are_wrong_are_named(annotator, stand_in):
    with pytest.raises(ServerError, match=r"has the models \['a', 'b'\]; choose one with --model"):
        VisionServer(stand_in([], models=("a", "b")).url).model_name()
    server = stand_in([GOOD], key="secret")
    assert "status 401" in Proposer(annotator, VisionServer(server.url), load_prompts(None)).propose(0)
    known = Proposer(annotator, VisionServer(server.url + "/v1/", key="secret"), load_prompts(None))
    assert known.propose(0) is None
    for address in ("localhost:8000", "file:///etc/passwd", "http://"):
        with pytest.raises(ValueError, match="server: expected an address such as"):
            VisionServer(address)
    with pytest.raises(ValueError, match="no cameras of this dataset"):
        Proposer(annotator, VisionServer(server.url), load_prompts(None), cameras=["top"])


def test_prompts_come_from_a_file_that_is_checked(tmp_path, capsys):
    path = tmp_path / "prompts.yaml"
    assert main(["--write-prompts", str(path)]) == 0
    assert load_prompts(path) == load_prompts(None)
    assert main(["--write-prompts", str(path)]) == 1
    assert "exists; name another file" in capsys.readouterr().err
    text = path.read_text()
    for wrong, message in (
        (text.replace("{task}", "{robot}"), r"propose: there is no \['robot'\]; a prompt may name"),
        (text.replace("verify:", "check:"), r"expected the keys \['propose', 'system', 'verify'\]"),
        ("system: [1]", "expected the keys"),
        ("{", "prompts"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            load_prompts(path)


def test_the_command_asks_once_goes_on_where_it_was_and_leaves_the_dataset_alone(dataset, stand_in, capsys):
    answers = [GOOD, "no idea", GOOD]
    server = stand_in(answers)
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    command = [str(dataset), "--server", server.url, "--propose", "--at-once", "1"]
    assert main(command) == 1
    out, errors = capsys.readouterr()
    assert "proposals: 2, doubtful ones among them: 1, episodes without one: 1." in out
    assert "episode 1: the model's answer cannot be used" in errors
    assert {path: path.read_bytes() for path in before} == before
    dataset_now = RobotDataset(dataset, embodiment="x", chunk_size=2)
    assert [dataset_now.thought_at(index) for index in range(len(dataset_now))] == [None] * 16
    answers.append(GOOD)
    assert main(command) == 0
    assert len(server.requests) == 4, "only the episode that had no proposal"
    annotator = Annotator(EpisodeData(dataset))
    annotator.dismiss(0)
    annotator.accept(1, 0)
    annotator.close()
    assert main(command) == 0
    assert len(server.requests) == 4, "what a person decided is not proposed again"
    answers.append(GOOD)
    assert main([*command, "--again", "--episodes", "0, 1"]) == 0
    assert len(server.requests) == 5, "sub-tasks of the dataset are never proposed to"


def test_options_without_effect_are_refused(dataset, capsys):
    for options in (["--propose"], ["--model", "a"], ["--server", "http://a", "--episodes", "1"], ["--verify"]):
        with pytest.raises(SystemExit):
            main([str(dataset), *options])
        assert "has an effect with --" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(dataset, capsys):
    assert main([str(dataset), "--server", "http://127.0.0.1:9", "--propose"]) == 1
    assert "http://127.0.0.1:9/v1: ConnectError" in capsys.readouterr().err


def test_many_episodes_are_asked_a_few_at_a_time(tmp_path, stand_in):
    annotator = Annotator(EpisodeData(record(tmp_path / "many", (3,) * 12)))
    server = stand_in(lambda _: GOOD.replace("0.3", "0.2"))
    proposer = Proposer(annotator, VisionServer(server.url), load_prompts(None))
    assert sorted(episode for episode, _ in proposer.propose_many(range(12), 2)) == list(range(12))
    assert server.most_at_once <= 2
    annotator.close()
