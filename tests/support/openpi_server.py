"""A policy server as openpi's is, as far as clients see it, with a policy for the environment of `reach_environment`.

Its messages are packed by the published `openpi_client`. It knows nothing of what a SyVLA server adds: metadata without
protocol or version, an observation with the keys of one dialect and no others, an error as the text of a traceback and
then the end of the connection.
"""

import threading
import time
import traceback

import numpy as np
from openpi_client import msgpack_numpy
from websockets.sync.server import serve

DIALECT = """
images: {center: observation/image}
image_layout: [hwc]
state: [{key: observation/position, dim: 2}, {key: observation/goal, dim: 2}]
prompt: [prompt]
"""
KEYS = {"observation/image", "observation/position", "observation/goal", "prompt"}


class OpenpiServer:
    """Serves in a thread while its `with` block runs.

    Attributes:
        url: Where it listens.
        requests: Observations in the order they came.
    """

    def __init__(self, metadata=None, chunk: int = 5, width: int = 2, seconds: float = 0.0) -> None:
        self.metadata, self.chunk, self.width, self.seconds = metadata or {}, chunk, width, seconds
        self.requests: list[dict] = []
        self.lengths: list[int] = []  # of further chunks, before `chunk` goes on
        self.busy = threading.Lock()  # openpi computes on its event loop: one request after another
        self._server = serve(self._talk, "127.0.0.1", 0, compression=None, max_size=None)
        self.url = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> "OpenpiServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._thread.join()

    def infer(self, observation: dict) -> dict:
        """Walks straight to the goal."""
        if set(observation) != KEYS:
            raise KeyError(f"unexpected observation keys {sorted(observation)}")
        assert observation["observation/image"].dtype == np.uint8
        towards = np.zeros(self.width)
        towards[:2] = (observation["observation/goal"] - observation["observation/position"]) / 8
        length = self.lengths.pop(0) if self.lengths else self.chunk
        return {"actions": np.tile(towards, (length, 1)), "policy_timing": {"infer_ms": 1.0}}

    def _talk(self, socket) -> None:
        packer = msgpack_numpy.Packer()
        socket.send(packer.pack(self.metadata))
        for message in socket:
            try:
                with self.busy:
                    time.sleep(self.seconds)
                    observation = msgpack_numpy.unpackb(message)
                    self.requests.append(observation)
                    socket.send(packer.pack(self.infer(observation)))
            except Exception:
                socket.send(traceback.format_exc())
                socket.close(1011, "Internal server error. Traceback included in previous frame.")
                return
