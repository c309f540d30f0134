"""Folders that are whole or absent."""

import errno
import hashlib
import json
import os
import re
import shutil

import pytest
from killed_writers import killed_at_each_call

from syvla.sealed_folders import folder_problems, publish_folder, remove_folder, seal_folder, undo_replacement

PUBLISH = """
aside = folder / "aside"
staged = aside / "a"
import shutil
shutil.rmtree(staged, ignore_errors=True)
(staged / "deep").mkdir(parents=True)
for name in ("one", "deep/two"):
    (staged / name).write_text("new" * 100)
sealed_folders.seal_folder(staged, "seal.json", {"version": 2})
sealed_folders.publish_folder(staged, folder / "a")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "one").write_text("old")
    (tmp_path / "a" / "deep" / "two").write_text("older")
    seal_folder(tmp_path / "a", "seal.json", {"version": 1})
    return tmp_path / "a"


def test_seal_lists_sizes_and_hashes(folder):
    sealed = json.loads((folder / "seal.json").read_text())
    assert sealed["version"] == 1
    assert sealed["files"].keys() == {"one", "deep/two"}
    assert sealed["files"]["one"] == [3, hashlib.sha256(b"old").hexdigest()]
    assert folder_problems(folder, "seal.json") == []


def test_sizes_alone(folder):
    (folder / "label.json").write_text("{}")
    seal_folder(folder, "sizes.json", hashes=False, changing=[folder / "label.json", folder / "seal.json"])
    assert json.loads((folder / "sizes.json").read_text()) == {"files": {"deep/two": [5], "one": [3]}}
    (folder / "one").write_text("odd")
    (folder / "label.json").write_text('{"reward": 1}')
    assert folder_problems(folder, "sizes.json") == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "one").write_text("ol"), "one: 2 bytes, expected 3 bytes"),
        (lambda f: (f / "one").write_text("odd"), r"one: SHA-256 \w{12}\.\.\., expected \w{12}\.\.\.: its contents"),
        (lambda f: (f / "deep" / "two").unlink(), "deep/two: missing, expected 5 bytes"),
        (lambda f: (f / "seal.json").unlink(), "seal.json is missing, which is written last"),
        (lambda f: (f / "seal.json").write_text('{"files": {"one"'), "seal.json cannot be read"),
        (lambda f: (f / "seal.json").write_text('{"version": 1}'), "seal.json cannot be read"),
        (lambda f: (f / "seal.json").write_text("[]"), "seal.json cannot be read"),
        (lambda f: (f / "seal.json").write_text('{"files": {"one": "3"}}'), "seal.json cannot be read"),
        (lambda f: (f / "seal.json").write_text('{"files": {"one": [3, 4]}}'), "seal.json cannot be read"),
        (lambda f: (f / "seal.json").write_text('{"files": {"../../etc": 3}}'), "etc: lies outside of the folder"),
        (lambda f: (f / "seal.json").write_text('{"files": {"/etc/passwd": 3}}'), "passwd: lies outside of the folder"),
        (lambda f: shutil.rmtree(f), "there is no such folder"),
    ],
)
def test_damage_is_named(folder, damage, problem):
    damage(folder)
    (found,) = folder_problems(folder, "seal.json")
    assert re.search(problem, found), found


def test_earlier_forms_of_the_list_are_read(folder):
    digest = json.loads((folder / "seal.json").read_text())["files"]["one"][1]
    (folder / "seal.json").write_text(json.dumps({"files": {"one": [3, digest], "deep/two": 5}}))
    assert folder_problems(folder, "seal.json") == []
    (folder / "deep" / "two").write_text("2")
    assert folder_problems(folder, "seal.json") == ["deep/two: 1 bytes, expected 5 bytes"]


def test_killed_at_any_call_the_folder_is_whole_and_old_or_new(folder):
    root, seen = folder.parent, set()
    for number in killed_at_each_call(PUBLISH, root):
        undo_replacement(root / "aside", root)
        assert folder_problems(folder, "seal.json") == [], f"killed at call {number}"
        version = json.loads((folder / "seal.json").read_text())["version"]
        assert (folder / "one").read_text() == {1: "old", 2: "new" * 100}[version]
        seen.add(version)
        if version == 2:
            shutil.rmtree(folder)
            (folder / "deep").mkdir(parents=True)
            (folder / "one").write_text("old")
            seal_folder(folder, "seal.json", {"version": 1})
    assert seen == {1, 2}
    assert json.loads((folder / "seal.json").read_text())["version"] == 2
    assert [path.name for path in (root / "aside").iterdir()] == []


def test_unsealed_folder_of_a_killed_writer_is_told_from_a_whole_one(tmp_path):
    for number in killed_at_each_call(PUBLISH, tmp_path):
        staged = tmp_path / "aside" / "a"
        places = [place for place in (staged, tmp_path / "a") if not folder_problems(place, "seal.json")]
        assert not places or (places[0] / "deep" / "two").read_text() == "new" * 100
        assert bool(places) == (tmp_path / "a").exists() or places == [staged], f"killed at call {number}"
        shutil.rmtree(tmp_path / "a", ignore_errors=True)


def test_removal_leaves_no_half_folder_under_the_name(folder):
    root = folder.parent
    program = "sealed_folders.remove_folder(folder / 'a', folder / 'aside')"
    copy = root / "copy"
    shutil.copytree(folder, copy)
    for number in killed_at_each_call(program, root):
        if folder.exists():
            assert folder_problems(folder, "seal.json") == [], f"killed at call {number}"
        else:
            shutil.copytree(copy, folder)
    assert not folder.exists()
    remove_folder(copy, root / "aside")
    assert list((root / "aside").iterdir()) == []


def test_file_that_does_not_reach_the_disk_is_never_sealed(folder, monkeypatch):
    original = os.fsync

    def failing(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("two"):
            raise OSError(errno.EIO, "Input/output error")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        seal_folder(folder, "seal.json")
    assert folder_problems(folder, "seal.json")[0].startswith("seal.json is missing")


def test_publication_into_a_new_folder(folder):
    publish_folder(folder, folder.parent / "new" / "place")
    assert folder_problems(folder.parent / "new" / "place", "seal.json") == []
    assert not folder.exists()
