"""A stand-in of a model hub on this machine: what `huggingface_hub` asks for when it publishes."""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What was sent, and how the stand-in behaves."""

    url: str = ""
    created: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    tokens: set[str | None] = field(default_factory=set)
    refuses: bool = False


def answer(hub, path, body, token):
    """What is said to a request, as JSON."""
    hub.tokens.add(token)
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        hub.created.append(json.loads(body))
        return {"url": f"{hub.url}/me/encoder"}
    if "/preupload/" in path:
        files = json.loads(body)["files"]
        modes = {True: "lfs", False: "regular"}
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in files
            ]
        }
    if path.endswith("/info/lfs/objects/batch"):
        objects = json.loads(body)["objects"]
        upload = [
            {**each, "actions": {"upload": {"href": f"{hub.url}/store/{each['oid']}"}}}
            for each in objects
        ]
        return {"transfer": "basic", "objects": upload}
    if "/commit/" in path:
        commit(hub, body)
        return {"commitUrl": f"{hub.url}/me/encoder/commit/1", "commitOid": "1", "success": True}
    raise KeyError(path)


def commit(hub, body):
    """Take the files of a commit."""
    hub.commits += 1
    for line in body.decode().splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            hub.files[value["path"]] = base64.b64decode(value["content"])
        if entry["key"] == "lfsFile":
            hub.files[value["path"]] = hub.large[value["oid"]]


@contextmanager
def running_hub():
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def body(self):
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def say(self, status, values):
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self):
            body = self.body()
            if hub.refuses:
                self.say(403, {"error": "you may not write here"})
                return
            self.say(
                200,
                answer(hub, self.path.partition("?")[0], body, self.headers.get("authorization")),
            )

        def do_PUT(self):
            hub.large[self.path.rpartition("/")[2]] = self.body()
            self.say(200, {})

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
