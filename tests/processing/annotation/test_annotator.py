"""Changes, undo, recovery after a crash, and what other programs do meanwhile."""

import json

import pyarrow.parquet as pq
import pytest
from dataset_recordings import features, record

from syvla.processing.annotation.annotator import Annotator, ConflictError
from syvla.processing.annotation.episode_data import EpisodeData
from syvla.processing.annotation.proposals import Proposal
from syvla.processing.recording.robot_dataset_writer import RobotDatasetWriter
from syvla.processing.robot_data.robot_dataset import RobotDataset


@pytest.fixture
def annotate(tmp_path):
    """Opens a dataset: `annotate(root) -> Annotator`; all are closed at the end, before `tmp_path` goes."""
    held = []

    def start(root, **options):
        held.append(Annotator(EpisodeData(root), **options))
        return held[-1]

    yield start
    for annotator in held:
        annotator.close()


def crash(annotator):
    """What the system does for a killed process: its threads end and its lock is free."""
    annotator._write_back._closed = True
    with annotator._mutex:
        annotator._write_back._wake.notify_all()
    annotator._write_back._thread.join()
    annotator._lock.release()
    annotator._lock = None


def thoughts(root, episode):
    dataset = RobotDataset(root, embodiment="x", chunk_size=2, episodes=[episode])
    return [dataset.thought_at(index) for index in range(len(dataset))]


def test_changes_reach_the_dataset_and_the_journal_goes(annotate, dataset):
    annotator = annotate(dataset)
    annotator.change("mark", {1: [[2, "lift"]]}, {1: 0})
    assert (dataset / ".annotations" / "journal.jsonl").is_file()
    annotator.close()
    assert thoughts(dataset, 1) == [None] * 2 + ["lift"] * 5
    assert not (dataset / ".annotations" / "journal.jsonl").exists()
    assert not (dataset / ".recording").exists()


def test_undo_and_redo_go_through_every_step(annotate, dataset):
    annotator = annotate(dataset)
    annotator.change("one", {0: [[0, "a"]]})
    annotator.change("two", {0: [[0, "a"], [2, "b"]], 1: [[1, "c"]]})
    assert annotator.status()["undo"] == "two"
    assert annotator.undo() == [0, 1]
    assert (annotator.subtasks(0), annotator.subtasks(1)) == (((0, "a"),), ())
    assert annotator.undo() == [0]
    assert annotator.subtasks(0) == ()
    assert annotator.undo() == []
    assert (annotator.redo(), annotator.redo(), annotator.redo()) == ([0], [0, 1], [])
    assert (annotator.subtasks(0), annotator.subtasks(1)) == (((0, "a"), (2, "b")), ((1, "c"),))
    annotator.undo()
    annotator.change("three", {2: [[0, "d"]]})
    assert annotator.redo() == [], "a new step ends what could be repeated"
    annotator.close()
    assert [thoughts(dataset, e)[-1] for e in range(3)] == ["a", None, "d"]


def test_a_change_of_an_older_state_is_refused(annotate, dataset):
    annotator = annotate(dataset)
    annotator.change("one", {0: [[0, "a"]]}, {0: 0})
    with pytest.raises(ConflictError, match="episode 0 was changed in another window"):
        annotator.change("two", {0: [[0, "b"]]}, {0: 0})
    assert annotator.subtasks(0) == ((0, "a"),)


def test_what_a_crash_left_in_the_journal_is_taken_over(annotate, dataset):
    annotator = annotate(dataset)
    annotator.change("one", {0: [[0, "a"]]})
    annotator.flush()
    annotator.change("two", {0: [[0, "b"]], 2: [[1, "c"]]})
    annotator.change("three", {0: [[0, "b"], [3, "d"]]})
    crash(annotator)
    with (dataset / ".annotations" / "journal.jsonl").open("a") as journal:
        journal.write('{"episode": 1, "before": [], "aft')
    assert thoughts(dataset, 0)[-1] == "a", "not in the data yet"
    again = annotate(dataset)
    assert (again.subtasks(0), again.subtasks(1), again.subtasks(2)) == (((0, "b"), (3, "d")), (), ((1, "c"),))
    assert again.messages == [
        "1 unfinished or damaged line of the journal was left out: a crash cut off the change that was being saved",
        "recovered changes of 2 episodes that were not in the data yet",
    ]
    again.close()
    assert thoughts(dataset, 0) == ["b"] * 3 + ["d"] * 2
    assert annotate(dataset).messages == []


def test_a_crash_between_two_files_is_no_conflict(annotate, dataset):
    """The journal still begins with a state that is older than the one in the data."""
    annotator = annotate(dataset)
    annotator.change("one", {0: [[0, "a"]]})
    journal = (dataset / ".annotations" / "journal.jsonl").read_text()
    annotator.flush()
    annotator.change("two", {0: [[0, "b"]]})
    (dataset / ".annotations" / "journal.jsonl").write_text(
        journal + (dataset / ".annotations" / "journal.jsonl").read_text()
    )
    crash(annotator)
    again = annotate(dataset)
    assert again.subtasks(0) == ((0, "b"),)
    assert again.proposals.episodes() == []


def test_what_another_program_changed_meanwhile_is_not_overwritten(annotate, dataset):
    annotator = annotate(dataset)
    annotator.change("mine", {0: [[0, "mine"]]})
    crash(annotator)
    journal = (dataset / ".annotations" / "journal.jsonl").read_text()
    other = annotate(dataset)
    other.change("theirs", {0: [[0, "theirs"]]})
    other.close()
    (dataset / ".annotations" / "journal.jsonl").write_text(journal)
    again = annotate(dataset)
    assert again.subtasks(0) == ((0, "theirs"),)
    assert again.proposals.get(0) == Proposal(0, "your unsaved changes", ((0, "mine"),), ())
    assert "another program changed episodes [0]" in again.messages[0]


def test_one_program_at_a_time(annotate, dataset):
    annotator = annotate(dataset)
    with pytest.raises(RuntimeError, match="another program annotates or records here"):
        annotate(dataset)
    with pytest.raises(RuntimeError, match="another process is recording or annotating here"):
        RobotDatasetWriter(dataset, fps=10, features=features(), use_videos=False)
    annotator.close()
    with RobotDatasetWriter(dataset, fps=10, features=features(), use_videos=False), pytest.raises(RuntimeError):
        annotate(dataset)


def test_a_change_that_cannot_be_kept_is_not_made(annotate, dataset):
    annotator = annotate(dataset)
    (dataset / ".annotations").write_text("a file where the folder belongs")
    with pytest.raises(OSError, match="annotations"):
        annotator.change("mark", {0: [[0, "a"]]})
    assert annotator.subtasks(0) == ()
    assert annotator.status()["undo"] is None
    (dataset / ".annotations").unlink()
    annotator.change("mark", {0: [[0, "a"]]})
    assert annotator.subtasks(0) == ((0, "a"),)


def test_all_files_of_a_dataset_get_the_column(annotate, dataset):
    """Also those without a changed episode: other programs expect the same columns in every file."""
    info = json.loads((dataset / "meta" / "info.json").read_text())
    path = dataset / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    owner = table.column("episode_index").to_numpy()
    pq.write_table(table.filter(owner < 2), path)
    pq.write_table(table.filter(owner == 2), path.with_name("file-001.parquet"))
    (rows,) = (dataset / "meta" / "episodes").glob("*/*.parquet")
    episodes = pq.read_table(rows).to_pandas()
    episodes.loc[2, "data/file_index"] = 1
    episodes.to_parquet(rows)
    annotator = annotate(dataset)
    annotator.change("mark", {0: [[0, "a"]]})
    annotator.flush()
    annotator.close()
    for file in path.parent.iterdir():
        assert "language_persistent" in pq.read_schema(file).names
    after = json.loads((dataset / "meta" / "info.json").read_text())
    assert after["features"].pop("language_persistent") == {"dtype": "language", "shape": [1], "names": None}
    assert after == info
    assert thoughts(dataset, 2) == [None] * 4


def test_texts_of_the_same_instruction_come_first(annotate, tmp_path):
    annotator = annotate(record(tmp_path / "more", (5, 5, 5, 5)))  # instructions: task 0, task 1, task 0, task 1
    annotator.change("mark", {0: [[0, "z"], [1, "a"]], 1: [[0, "b"], [1, "c"]], 3: [[0, "c"]]})
    assert annotator.texts(0) == [("z", 1), ("a", 1), ("c", 2), ("b", 1)], "as frequent ones in the order of the motion"
    assert annotator.texts(1) == [("c", 2), ("b", 1), ("a", 1), ("z", 1)]


def test_proposals_stay_apart_until_a_person_accepts_them(annotate, dataset):
    annotator = annotate(dataset)
    annotator.proposals.add(Proposal(0, "model", ((0, "a"), (2, "b")), ("no word of the task",)))
    annotator.flush()
    assert thoughts(dataset, 0) == [None] * 5
    assert annotator.annotated() == [False] * 3
    annotator.close()
    again = annotate(dataset)
    assert again.proposals.get(0).problems == ("no word of the task",)
    with pytest.raises(ConflictError):
        again.accept(0, 7)
    assert again.accept(0, 0) == [0]
    assert again.proposals.get(0) is None
    with pytest.raises(ValueError, match="episode 0 has no proposal"):
        again.accept(0, 1)
    again.close()
    assert thoughts(dataset, 0) == ["a"] * 2 + ["b"] * 3


def test_a_look_changes_nothing(annotate, dataset):
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    looking = annotate(dataset, read_only=True)
    with pytest.raises(ValueError, match="`syvla-annotate` changes it"):
        looking.change("mark", {0: [[0, "a"]]})
    with pytest.raises(ValueError, match="open for a look only"):
        looking.undo()
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
