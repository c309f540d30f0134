"""An encoder leaves the scheduling of the process as it was: SVT-AV1 takes the highest real-time priority where it may."""

import os
import threading

import numpy as np
import pytest

from syvla.processing.robot_data.video import VideoWriter, default_codec, kept_priorities

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="scheduling policies are Linux's"),
]


def policies() -> set[int]:
    """Of all threads of this process."""
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root may take a real-time priority; see the next test"
)
@pytest.mark.parametrize("codec", [default_codec(), "h264"])
def test_recording_a_video_takes_no_real_time_priority(codec, tmp_path):
    before = policies()
    writer = VideoWriter(tmp_path / "video.mp4", 10, 64, 64, codec)
    while_open = policies()
    for level in (0, 100, 200):
        writer.write(np.full((64, 64, 3), level, np.uint8))
    while_encoding = policies()
    writer.close()
    assert before == {os.SCHED_OTHER}
    assert while_open == while_encoding == policies() == before


def test_the_caller_and_new_threads_get_the_callers_scheduling_back():
    """With a policy that any user may take: batch."""
    began, over = threading.Event(), threading.Event()
    new: list[int] = []

    def work() -> None:
        new.append(threading.get_native_id())
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        began.set()
        over.wait(60)

    thread = threading.Thread(target=work)
    before = os.sched_getscheduler(0)
    with kept_priorities():
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        thread.start()
        assert began.wait(60)
        assert os.sched_getscheduler(0) == os.sched_getscheduler(new[0]) == os.SCHED_BATCH
    found = os.sched_getscheduler(0), os.sched_getscheduler(new[0])
    over.set()
    thread.join()
    assert found == (before, before) == (os.SCHED_OTHER, os.SCHED_OTHER)


def test_a_thread_that_had_another_scheduling_keeps_it():
    began, over = threading.Event(), threading.Event()
    other: list[int] = []

    def work() -> None:
        other.append(threading.get_native_id())
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        began.set()
        over.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(60)
    with kept_priorities():
        pass
    found = os.sched_getscheduler(other[0])
    over.set()
    thread.join()
    assert found == os.SCHED_BATCH
