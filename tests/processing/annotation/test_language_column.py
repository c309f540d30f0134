"""The column of sub-tasks is replaced, everything else stays; files of this project, of LeRobot and of `lerobot-annotate`."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_recordings import record

from syvla.processing.annotation.language_column import declare_column, read_rows, replace_subtasks
from syvla.processing.robot_data.robot_dataset import RobotDataset

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "lerobot_v3_tiny"
DATA = "data/chunk-000/file-000.parquet"
COLUMN = "language_persistent"


def row(time, text, style="subtask"):
    return {"role": "assistant", "content": text, "style": style, "timestamp": time, "camera": None, "tool_calls": None}


def thoughts(root):
    dataset = RobotDataset(root, embodiment="x", chunk_size=2)
    return [[dataset.thought_at(int(first) + i) for i in range(length)]
            for first, length in zip(dataset.episode_starts, dataset.episode_lengths, strict=True)]  # fmt: skip


def without_column(path):
    table = pq.read_table(path)
    return table.drop_columns([COLUMN]) if COLUMN in table.column_names else table


def row_groups(path):
    metadata = pq.read_metadata(path)
    return [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]


def test_a_dataset_without_the_column_gets_it(dataset):
    before, groups = without_column(dataset / DATA), row_groups(dataset / DATA)
    assert declare_column(dataset)
    assert not declare_column(dataset)
    assert thoughts(dataset)[0] == [None] * 5, "listed, and in none of the files yet"
    replace_subtasks(dataset / DATA, {0: [row(0.0, "reach"), row(0.3, "lift")]})
    assert thoughts(dataset) == [["reach"] * 3 + ["lift"] * 2, [None] * 7, [None] * 4]
    assert without_column(dataset / DATA).equals(before)
    assert row_groups(dataset / DATA) == groups
    footer = json.loads(pq.read_schema(dataset / DATA).metadata[b"huggingface"])["info"]["features"]
    assert set(footer) == {*before.column_names, COLUMN}


def test_a_file_that_lerobot_wrote_keeps_its_other_columns_and_episodes(tmp_path):
    root = tmp_path / "golden"
    shutil.copytree(GOLDEN, root)
    files = sorted(root.glob("data/*/*.parquet"))
    before = {path: (pq.read_schema(path), without_column(path), read_rows(path)) for path in files}
    known = thoughts(root)
    path, (schema, _, rows) = next((path, kept) for path, kept in before.items() if kept[2])
    changed = min(rows)
    replace_subtasks(path, {changed: [row(0.0, "other")]})
    assert pq.read_schema(path).equals(schema, check_metadata=True)
    assert without_column(path).equals(before[path][1]), "pictures and matrices too"
    after = thoughts(root)
    assert set(after[changed]) == {"other"} != set(known[changed])
    assert [t for i, t in enumerate(after) if i != changed] == [t for i, t in enumerate(known) if i != changed]


def as_lerobot_annotate_writes(path, rows_of_episode):
    """Its writer lets pyarrow infer the types, drops the footer and writes one row group."""
    table = pq.read_table(path)
    owner = table.column("episode_index").to_pylist()
    names = [name for name in table.column_names if name != COLUMN]
    columns = [table.column(name) for name in names] + [pa.array([rows_of_episode.get(e, []) for e in owner])]
    pq.write_table(pa.Table.from_arrays(columns, names=[*names, COLUMN]), path)


def test_plans_and_memories_of_lerobot_annotate_stay(dataset):
    others = [
        row(0.0, "1. reach 2. lift", "plan"),
        row(0.0, "raise the cube", "task_aug"),
        row(0.2, "reached", "memory"),
    ]
    as_lerobot_annotate_writes(dataset / DATA, {0: [*others, row(0.0, "by the model")], 1: [row(0.1, "also")]})
    declare_column(dataset)
    assert thoughts(dataset)[0] == ["by the model"] * 5
    replace_subtasks(dataset / DATA, {0: [row(0.0, "reach"), row(0.2, "lift")]})
    found = read_rows(dataset / DATA)
    assert [one["content"] for one in found[0]] == ["1. reach 2. lift", "reach", "raise the cube", "reached", "lift"]
    assert thoughts(dataset)[:2] == [["reach"] * 2 + ["lift"] * 3, [None] + ["also"] * 6]


def test_columns_that_lerobot_annotate_left_empty_take_subtasks(dataset):
    as_lerobot_annotate_writes(dataset / DATA, {})
    declare_column(dataset)
    replace_subtasks(dataset / DATA, {2: [row(0.1, "lift")]})
    assert thoughts(dataset)[2] == [None, "lift", "lift", "lift"]


def test_tool_calls_of_other_rows_stay(dataset):
    call = [{"type": "function", "function": {"name": "say", "arguments": {"text": "hi"}}}]
    as_lerobot_annotate_writes(dataset / DATA, {0: [{**row(0.0, None, "plan"), "tool_calls": call}]})
    replace_subtasks(dataset / DATA, {0: [row(0.0, "reach")]})
    plan, subtask = read_rows(dataset / DATA)[0]
    assert [json.loads(one) for one in plan["tool_calls"]] == call
    assert (subtask["tool_calls"], subtask["content"]) == (None, "reach")


def test_rows_that_differ_between_the_frames_of_an_episode_are_refused(dataset):
    table = pq.read_table(dataset / DATA)
    rows = [[row(0.0, str(index))] for index in range(len(table))]
    pq.write_table(table.append_column(COLUMN, pa.array(rows)), dataset / DATA)
    before = (dataset / DATA).read_bytes()
    with pytest.raises(
        ValueError, match=r"file-000.parquet: episode 0: language_persistent differs between its frames"
    ):
        replace_subtasks(dataset / DATA, {0: [row(0.0, "reach")]})
    assert (dataset / DATA).read_bytes() == before


def test_a_file_that_changes_meanwhile_is_not_replaced(dataset, monkeypatch):
    from syvla.processing.annotation import language_column

    copy = language_column._copy

    def slow_copy(*arguments):
        copy(*arguments)
        pq.write_table(pq.read_table(dataset / DATA), dataset / DATA)

    monkeypatch.setattr(language_column, "_copy", slow_copy)
    with pytest.raises(ValueError, match="another program wrote the file meanwhile"):
        replace_subtasks(dataset / DATA, {0: [row(0.0, "reach")]})
    assert COLUMN not in pq.read_schema(dataset / DATA).names
    assert len(list((dataset / DATA).parent.iterdir())) == 1


def test_videos_stay_untouched(tmp_path):
    root = record(tmp_path / "video", (4, 3), use_videos=True)
    videos = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.mp4")}
    assert videos
    declare_column(root)
    replace_subtasks(root / DATA, {1: [row(0.0, "reach")]})
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*.mp4")} == videos
    assert thoughts(root) == [[None] * 4, ["reach"] * 3]
