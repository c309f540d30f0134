"""The counts of a journey: by hand on a list of calls, and of the request path, which must stay as short as it is."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.journeys import JOURNEYS, Trace, summarize

ROOT = Path(__file__).resolve().parents[2]


def test_calls_functions_files_and_changes_are_counted():
    server, wire, layer, loop = (
        "serving/server.py",
        "serving/wire.py",
        "modeling_syvla/layer.py",
        "modeling_syvla/loop.py",
    )
    calls = [(server, "handle"), (wire, "read"), (wire, "part"), (wire, "part"), (server, "handle"), (loop, "denoise")]
    calls += [(layer, "forward"), (loop, "step"), (layer, "forward"), (server, "reply")]
    found = summarize(calls)
    assert (found["calls"], found["functions"], found["files"]) == (10, 7, 4)
    assert found["changes_of_file"] == 4, "server, wire, server, model, server: the model is one place"
    assert found["entered"] == {server: 3, wire: 1, "modeling_syvla/": 1}
    assert found["path"][wire] == ["read", "part"]


def test_a_trace_has_our_functions_of_every_watched_thread_and_nothing_else():
    from syvla.serving.wire.msgpack_codec import pack, unpack

    def work() -> None:
        unpack(pack({"a": [1, 2]}))
        Path("elsewhere").as_posix()

    trace = Trace()
    with trace.installed(this_thread=False):
        work()  # before the passage
        with trace.passage():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            work()  # a thread that is not watched
    (calls,) = trace.passages
    assert [name for _, name in calls].count("unpack") == 1
    assert calls[0] == ("serving/wire/msgpack_codec.py", "pack")
    assert {file.split("/")[0] for file, _ in calls} == {"serving"}
    assert not any("<listcomp>" in name for _, name in calls)


def test_an_unknown_journey_is_refused():
    command = [sys.executable, "-m", "benchmarks.journeys", "nowhere"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert f"expected names out of {', '.join(JOURNEYS)}, got nowhere" in result.stderr


@pytest.mark.slow
def test_the_request_path_stays_short(tmp_path):
    """A frame passes 29 files with 49 to 51 changes of file; further ones are worth a thought before this bound is raised."""
    pytest.importorskip("fastapi", reason="the server needs the extra serve")
    command = [sys.executable, "-m", "benchmarks.journeys", "frame_to_chunk", "--json", str(tmp_path / "counts.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=400)
    found = json.loads((tmp_path / "counts.json").read_text())["frame_to_chunk"]
    assert found["files"] <= 30
    assert found["changes_of_file"] <= 54
    assert found["entered"]["serving/server/act_service.py"] >= 3, "it was traced at all"
