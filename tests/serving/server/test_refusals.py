"""A refused request leaves nothing in memory, without any help of the collector: measured on a server process."""

import gc
import io
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

from syvla.serving.contract.requests import RequestError
from syvla.serving.server.refusals import without_request_data
from syvla.serving.wire.msgpack_codec import pack

ROOT = Path(__file__).resolve().parents[3]
SERVER = """
import gc, sys
sys.path.insert(0, sys.argv[1])
from served_policies import CountingPolicy
from syvla.serving import PolicyServer
from syvla.serving.server.settings import ServerSettings
from syvla.serving.wire.msgpack_codec import CodecLimits

class Forgetful(CountingPolicy):
    def answer(self, requests):
        try:
            return super().answer(requests)
        finally:
            self.batches.clear()  # nothing but the server may keep them

    def _one(self, request):
        if request.instruction == "break":
            raise RuntimeError("weights")
        return super()._one(request)

settings = ServerSettings(
    port=0, limits=CodecLimits(max_message_bytes=10**7), max_pixels=1024 * 1024, max_memory_bytes=int(sys.argv[2])
)
with PolicyServer(Forgetful(), settings).start() as server:
    gc.disable()
    print(server.url, flush=True)
    sys.stdin.read()
"""
MIB = 2**20


@pytest.fixture
def measured():
    """Starts a server whose collector is off; gives its URL and a function for the MiB that it holds."""
    started = []

    def start(limit):
        command = [sys.executable, "-c", SERVER, str(ROOT / "tests" / "support"), str(limit)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        url = process.stdout.readline().strip()

        def resident() -> float:
            status = Path(f"/proc/{process.pid}/status").read_text()
            return int(status.split("VmRSS:")[1].split()[0]) / 1024

        return url, resident

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_pictures_that_find_no_memory_are_gone_when_their_request_is(measured, request_of):
    """60 requests of three 1024 x 1024 pictures at once are 540 MiB; the budget takes three of them at a time."""
    url, resident = measured(32 * MIB)
    file = io.BytesIO()
    Image.new("RGB", (1024, 1024)).save(file, "PNG")
    views = {f"observation.images.{view}": file.getvalue() for view in ("center", "left_wrist", "right_wrist")}
    body, headers = pack(request_of(**views)), {"Content-Type": "application/msgpack"}

    def post(_) -> int:
        return httpx.post(f"http://{url}/v1/act", content=body, headers=headers, timeout=300).status_code

    post(0)
    before = resident()
    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(post, range(60)))
    assert set(statuses) <= {200, 503}
    assert resident() - before < 120


REFUSED = [
    ({"observation.state": np.zeros(3, np.float32)}, "observation.state: expected"),
    ({"prompt": "impossible"}, "expected something possible"),
    ({"prompt": "break"}, "the policy failed"),
    ({"prompt": "nan"}, "expected finite numbers"),
    ({"unknown": 1}, "unknown: unknown key"),
    ({"deadline_ms": 1e-3}, "deadline"),
    ({"observe_only": True}, "observe_only: expected a server that records"),
]


def test_raw_pictures_of_refused_requests_are_gone(measured, request_of):
    """25 requests of 4.6 MB after each other on one connection, for each kind of refusal: 770 MB in all."""
    url, resident = measured(64 * MIB)
    image = np.zeros((640, 800, 3), np.uint8)
    views = {f"observation.images.{view}": image for view in ("center", "left_wrist", "right_wrist")}
    with connect(f"ws://{url}", compression=None, max_size=None) as talk:
        talk.recv()
        for changes, message in REFUSED:
            body = pack(request_of(**{**views, **changes}))
            for count in range(25):
                talk.send(body)
                answer = talk.recv(timeout=120)
                assert isinstance(answer, str)
                assert message in answer
                if count == 5:
                    before = resident()
            assert resident() - before < 45, message


def test_the_errors_that_led_to_a_refusal_and_their_frames_are_emptied():
    class Picture(np.ndarray):
        """An array that weak references can follow under its own type."""

    seen = []

    def decode():
        picture = np.zeros(10).view(Picture)
        seen.append(weakref.ref(picture))
        raise ValueError("images: expected a picture")

    def read():
        kept = []
        try:
            decode()
        except ValueError as error:
            kept.append(error)  # a frame that holds its error, as futures do
            raise RequestError(str(error), status=413, cause="oversized", retry_after=3) from None

    gc.disable()
    try:
        try:
            read()
        except RequestError as error:
            refusal = without_request_data(error)
        assert seen[0]() is None
    finally:
        gc.enable()
    assert (str(refusal), refusal.status, refusal.cause) == ("images: expected a picture", 413, "oversized")
    assert refusal.retry_after == 3
    assert refusal.__context__ is None
