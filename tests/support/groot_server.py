"""A stand-in for GR00T's inference server: ZeroMQ, msgpack and .npy bytes put together here from the formats' specifications.

Nothing of the project writes or reads its messages. The msgpack subset follows https://github.com/msgpack/msgpack/blob/master/spec.md,
arrays are written by numpy's own `np.save` and read by `np.load` without pickles, as the published server does.
"""

import io
import struct
import threading

import numpy as np
import zmq


def packed(value):
    """msgpack bytes of plain values and arrays."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"\xdb" + struct.pack(">I", len(data)) + data
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, np.ndarray):
        file = io.BytesIO()
        np.save(file, value, allow_pickle=True)  # object arrays too: a client has to refuse them
        return packed({"__ndarray_class__": True, "as_npy": file.getvalue()})
    if isinstance(value, dict):
        return b"\xdf" + struct.pack(">I", len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items())
    return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(packed, value))


def unpacked(data):
    """The value of msgpack bytes, arrays included."""
    value, rest = _next(memoryview(data))
    assert not rest
    return value


def _next(data):
    kind, data = data[0], data[1:]
    if kind <= 0x7F or kind >= 0xE0:
        return (kind if kind <= 0x7F else kind - 256), data
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], data
    if 0xA0 <= kind <= 0xBF:
        return bytes(data[: kind & 31]).decode(), data[kind & 31 :]
    if 0x80 <= kind <= 0x8F:
        return _map(kind & 15, data)
    if 0x90 <= kind <= 0x9F:
        return _list(kind & 15, data)
    numbers = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    numbers |= {0xCA: ">f", 0xCB: ">d"}
    if kind in numbers:
        return struct.unpack_from(numbers[kind], data)[0], data[struct.calcsize(numbers[kind]) :]
    lengths = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
    lengths |= {0xDE: ">H", 0xDF: ">I"}
    width = struct.calcsize(lengths[kind])
    length, data = struct.unpack_from(lengths[kind], data)[0], data[width:]
    if kind in (0xDE, 0xDF):
        return _map(length, data)
    if kind in (0xDC, 0xDD):
        return _list(length, data)
    content = bytes(data[:length])
    return (content if kind < 0xC7 else content.decode()), data[length:]


def _map(count, data):
    result = {}
    for _ in range(count):
        key, data = _next(data)
        result[key], data = _next(data)
    if "__ndarray_class__" in result:
        return np.load(io.BytesIO(result["as_npy"]), allow_pickle=False), data
    if b"nd" in result:  # msgpack-numpy, as N1.7 writes arrays
        return np.frombuffer(
            result[b"data"], result[b"type"].decode() if isinstance(result[b"type"], bytes) else result[b"type"]
        ).reshape(result[b"shape"]), data
    return result, data


def _list(count, data):
    result = []
    for _ in range(count):
        value, data = _next(data)
        result.append(value)
    return result, data


MODALITIES = {
    "video": ["image", "wrist_image"],
    "state": ["x", "y"],
    "language": ["annotation.human.action.task_description"],
}


class GrootServer:
    """Answers `get_action` with `answer(observation)`, packed here, or the bytes that it gives.

    Args:
        answer: Of an observation as it arrived.
        modalities: What the policy says it needs, by modality.
        token: What requests have to bring.
        flat: Whether the endpoint's data is the observation itself, as in N1.5.
    """

    def __init__(self, answer, modalities=None, token=None, flat=False):
        self.answer, self.token, self.flat = answer, token, flat
        self.modalities = MODALITIES if modalities is None else modalities
        self.requests, self.endpoints = [], []
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self.url = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._running = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while self._running:
            if self._socket.poll(50):
                reply = self._reply(unpacked(self._socket.recv()))
                self._socket.send(reply if isinstance(reply, bytes) else packed(reply))
        self._socket.close()

    def _reply(self, request):
        self.endpoints.append(request["endpoint"])
        if self.token is not None and request.get("api_token") != self.token:
            return {"error": "Unauthorized: Invalid API token"}
        if request["endpoint"] == "get_modality_config":
            return {
                modality: {"__ModalityConfig_class__": True, "as_json": {"delta_indices": [0], "modality_keys": names}}
                for modality, names in self.modalities.items()
            }
        observation = request["data"] if self.flat else request["data"]["observation"]
        self.requests.append(observation)
        return self.answer(observation)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._running = False
        self._thread.join()
