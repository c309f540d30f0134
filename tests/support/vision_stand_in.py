"""A stand-in for an OpenAI-compatible vision server, on loopback, with the routes that vLLM has."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class VisionStandIn:
    """Answers with what `answers` holds for the question's episode: a text, or (status, body bytes).

    Episodes are told apart by their instruction. Every request's body is kept in `requests`.
    """

    def __init__(self, answers, models=("qwen",), key=None):
        self.answers, self.models, self.key = answers, models, key
        self.requests, self.at_once, self.most_at_once = [], 0, 0
        self.mutex, self.barrier = threading.Lock(), None

    def answer(self, question):
        return self.answers.pop(0) if isinstance(self.answers, list) else self.answers(question)

    @contextmanager
    def running(self):
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, status, body, **headers):
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                assert self.path == "/v1/models"
                self.reply(200, json.dumps({"data": [{"id": name} for name in stand_in.models]}).encode())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions" or self.headers.get("Authorization") != (
                    stand_in.key and f"Bearer {stand_in.key}"
                ):
                    return self.reply(401, b"who are you?")
                with stand_in.mutex:
                    stand_in.requests.append(body)
                    answer = stand_in.answer(body["messages"][-1]["content"][-1]["text"])
                    stand_in.at_once += 1
                    stand_in.most_at_once = max(stand_in.most_at_once, stand_in.at_once)
                if stand_in.barrier is not None:
                    stand_in.barrier.wait(30)
                with stand_in.mutex:
                    stand_in.at_once -= 1
                if isinstance(answer, tuple):
                    return self.reply(*answer)
                self.reply(200, json.dumps({"choices": [{"message": {"content": answer}}]}).encode())

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def pictures_of(request):
    """(captions, JPEGs) of a request."""
    *parts, _ = request["messages"][-1]["content"]
    captions = [part["text"] for part in parts if part["type"] == "text"]
    addresses = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return captions, [base64.b64decode(one.removeprefix("data:image/jpeg;base64,")) for one in addresses]
