"""Files that are whole or absent: kills at every system call, full disks, many writers, file systems with gaps."""

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from killed_writers import killed_at_each_call, script

from syvla import durable_files
from syvla.durable_files import (
    append_json_lines,
    make_folder,
    read_json_lines,
    replace_durably,
    sha256_of,
    sync,
    write_atomically,
    write_json,
    write_text,
)

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*.tmp"))


def test_sha256_of_known_contents(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_laid_out_as_lerobot_does(tmp_path):
    write_json(tmp_path / "new" / "deep" / "a.json", {"ü": [1]})
    assert (tmp_path / "new/deep/a.json").read_bytes() == '{\n    "ü": [\n        1\n    ]\n}\n'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "new/deep/a.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "new/deep/a.json").read_text()) == {"ü": [1]}
    write_json(tmp_path / "report.json", {"loss": float("nan"), "path": tmp_path}, allow_nan=True, default=str)
    assert '"path": "' + str(tmp_path) in (tmp_path / "report.json").read_text()


def test_killed_at_any_call_old_or_new_stays(tmp_path):
    path = tmp_path / "deep" / "value.json"
    program = "durable_files.write_json(folder / 'deep' / 'value.json', ['new'] * 1000)"
    seen = set()
    for _ in killed_at_each_call(program, tmp_path):
        if path.exists():
            seen.add(json.loads(path.read_text())[0])
        assert len(leftovers(tmp_path)) <= 1, "leftovers of killed writers pile up"
        if path.exists():
            path.unlink()  # the next writer comes to an older state
            write_json(path, ["old"])
            assert leftovers(tmp_path) == [], "what a killed writer left stays"
        elif path.parent.exists():
            write_json(path, ["old"])
    assert seen == {"old", "new"}
    assert json.loads(path.read_text()) == ["new"] * 1000
    assert leftovers(tmp_path) == []


def test_contents_reach_the_disk_before_the_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    calls = []

    def noted(name, original, subject):
        def call(*args, **kwargs):
            calls.append((name, subject(args)))
            return original(*args, **kwargs)

        return call

    def named(args):
        return os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}"))

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync, named))
    monkeypatch.setattr(os, "replace", noted("replace", os.replace, lambda args: args[1].name))
    write_text(tmp_path / "a" / "value", "1")
    (created, parent), (first, temporary), (second, value), (third, folder) = calls
    assert (created, parent) == ("fsync", tmp_path.name)  # the new folder's own name
    assert (first, second, third) == ("fsync", "replace", "fsync")
    assert temporary.startswith(".value.")
    assert temporary.endswith(".tmp")
    assert (value, folder) == ("value", "a")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_contents_that_do_not_reach_the_disk_are_an_error(tmp_path, monkeypatch, code):
    write_text(tmp_path / "value", "old")

    def failing(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match=os.strerror(code)):
        write_text(tmp_path / "value", "new")
    assert (tmp_path / "value").read_text() == "old"
    assert leftovers(tmp_path) == []


@LINUX
def test_file_system_that_cannot_sync_folders(tmp_path, monkeypatch):
    original = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_text(tmp_path / "new" / "value", "1")
    append_json_lines(tmp_path / "lines", [{"a": 1}])
    sync(tmp_path)
    assert (tmp_path / "new" / "value").read_text() == "1"


@LINUX
def test_full_disk_leaves_the_old_contents(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        write_text(disk / "value", "old")
        with pytest.raises(OSError, match="No space left"):
            write_text(disk / "value", "new" * 100_000)
        with pytest.raises(OSError, match="No space left"):
            append_json_lines(disk / "lines", [{"text": "x" * 200_000}])
        assert (disk / "value").read_text() == "old"
        assert leftovers(disk) == []
        (disk / "lines").unlink()
        write_text(disk / "value", "newer")  # the space of the failed write came back
        assert (disk / "value").read_text() == "newer"
    finally:
        subprocess.run(["umount", disk], check=True)


@LINUX
def test_file_size_limit_leaves_the_old_contents(tmp_path):
    write_text(tmp_path / "value", "old")
    program = "durable_files.write_text(folder / 'value', 'new' * 100_000)"

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))

    done = subprocess.run(
        [*script(program), str(tmp_path)], capture_output=True, text=True, check=False, preexec_fn=limited
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert (tmp_path / "value").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_failing_writer_leaves_the_old_contents(tmp_path):
    write_text(tmp_path / "value", "old")

    def broken(temporary):
        temporary.write_text("ne")
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        write_atomically(tmp_path / "value", broken)
    assert (tmp_path / "value").read_text() == "old"
    assert leftovers(tmp_path) == []


@LINUX
def test_many_writers_of_one_file(tmp_path):
    """Readers see whole contents of one writer each; no writer takes another one's temporary file for a leftover."""
    program = """
for number in range(60):
    durable_files.write_json(folder / "value.json", [sys.argv[2]] * 3000)
"""
    writers = [subprocess.Popen([*script(program), str(tmp_path), name], stderr=subprocess.PIPE) for name in "abcd"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        try:
            value = json.loads((tmp_path / "value.json").read_text())
        except FileNotFoundError:
            time.sleep(0.001)
            continue
        assert len(value) == 3000
        assert len(set(value)) == 1
        seen.add(value[0])
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, errors
    assert len(seen) > 1
    assert leftovers(tmp_path) == []


def test_leftovers_of_other_files_stay(tmp_path):
    for name in (".other.json.0a1b2c3d.tmp", ".a[b].json.0a1b2c3d.tmp"):
        (tmp_path / name).write_text("")
    write_json(tmp_path / "a[b].json", 1)
    assert leftovers(tmp_path) == [".other.json.0a1b2c3d.tmp"]


def test_file_systems_without_locks(tmp_path, monkeypatch):
    """Nothing can be known to be a leftover there; writing works."""

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(durable_files.fcntl, "flock", no_locks)
    (tmp_path / ".value.0a1b2c3d.tmp").write_text("")
    write_text(tmp_path / "value", "1")
    assert (tmp_path / "value").read_text() == "1"
    assert leftovers(tmp_path) == [".value.0a1b2c3d.tmp"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "value", "1")
    finally:
        os.umask(before)
    assert (tmp_path / "value").stat().st_mode & 0o777 == 0o640


def test_finished_file_is_moved_over_another(tmp_path):
    (tmp_path / "video.part").write_bytes(b"new")
    (tmp_path / "video").write_bytes(b"old")
    replace_durably(tmp_path / "video.part", tmp_path / "video")
    assert (tmp_path / "video").read_bytes() == b"new"
    assert not (tmp_path / "video.part").exists()
    make_folder(tmp_path)  # there already


def test_lines_survive_kills_at_any_call(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = """
for number in range(3):
    durable_files.append_json_lines(folder / "journal.jsonl", [{"number": number}])
    print(number, flush=True)
"""
    for _ in killed_at_each_call(program, tmp_path):
        entries, torn = read_json_lines(path)
        assert [entry["number"] for entry in entries] == list(range(len(entries)))
        assert torn == 0
        path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("before", "entries", "torn"),
    [
        (b"", [], 0),
        (b'{"a": 1}\n{"b"', [{"a": 1}], 1),
        (b'{"a": 1}\n{"b": 2}', [{"a": 1}, {"b": 2}], 0),  # only the end of the line is missing
        (b'{"a": 1}\n[3]\n\xff\xfe\n', [{"a": 1}], 2),
    ],
)
def test_torn_line_is_ended_and_costs_nothing_else(tmp_path, before, entries, torn):
    path = tmp_path / "log.jsonl"
    path.write_bytes(before)
    append_json_lines(path, [{"c": 3}, {"d": "ü"}])
    assert read_json_lines(path) == ([*entries, {"c": 3}, {"d": "ü"}], torn)


def test_lines_of_no_file(tmp_path):
    assert read_json_lines(tmp_path / "none") == ([], 0)


def test_hash_of_a_large_file_reads_it_in_pieces(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 * 2**20)
    assert sha256_of(tmp_path / "large") == hashlib.sha256(bytes(3 * 2**20)).hexdigest()
