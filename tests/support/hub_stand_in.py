"""A stand-in for the Hub's upload endpoints that keeps what is committed; downloads of single files work too."""

import base64
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStandIn(ThreadingHTTPServer):
    """Accepts repositories, commits and tags. `repositories` maps "type/id" to {"files", "commits", "tags"}."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def files(self, key):
        """Path -> content of what was committed."""
        return self.repositories[key]["files"]

    @classmethod
    @contextmanager
    def running(cls):
        """Serves on a free port of the loopback until the block ends."""
        server = cls()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *args):
        """Silent."""

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, kind, name):
        return self.server.repositories[f"{kind}/{name}"]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not (self.headers.get("Authorization") or "").startswith("Bearer "):
            return self.answer({"error": "token"}, 401)
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            kind, name = asked.get("type") or "model", f"{asked.get('organization') or 'me'}/{asked['name']}"
            empty = {
                "files": {},
                "commits": [],
                "tags": {},
                "private": "private" in (asked.get("visibility"), asked.get("private") and "private"),
            }
            self.server.repositories.setdefault(f"{kind}/{name}", empty)
            return self.answer({"url": f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        kind, name, action, rest = re.fullmatch(r"/api/(\w+)s/([^/]+/[^/]+)/(\w+)/(.*)", path).groups()
        repository = self.repository(kind, name)
        if action == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if action == "commit":
            added = []
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    title = line["value"]["summary"]
                elif line["key"] == "file":
                    repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    added.append(line["value"]["path"])
            repository["commits"].append((title, sorted(added)))
            oid = f"{len(repository['commits']):040x}"
            return self.answer(
                {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}
            )
        if action == "tag":
            repository["tags"][json.loads(body)["tag"]] = rest
            return self.answer({})
        return self.answer({"error": path}, 404)

    def do_DELETE(self):
        kind, name, tag = re.fullmatch(r"/api/(\w+)s/([^/]+/[^/]+)/tag/(.*)", self.path).groups()
        del self.repository(kind, name)["tags"][tag]
        self.answer({})

    def do_GET(self):
        path = self.path.split("?")[0]
        if refs := re.fullmatch(r"/api/(\w+)s/([^/]+/[^/]+)/refs", path):
            tags = self.repository(*refs.groups())["tags"]
            listed = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in tags.items()]
            return self.answer({"branches": [], "converts": [], "tags": listed})
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path):
            name, wanted = file.groups()
            content = self.server.repositories.get(f"model/{name}", {"files": {}})["files"].get(wanted)
            if content is not None:
                return self.answer(content, headers=(("ETag", '"1"'), ("X-Repo-Commit", "0" * 40)))
        return self.answer({"error": "not found"}, 404, headers=(("X-Error-Code", "EntryNotFound"),))

    do_HEAD = do_GET
