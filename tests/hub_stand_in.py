"""A local stand-in for the HTTP interface of the Hugging Face Hub: one repository, its files, and a log of requests.

Uploads are taken too: the repository is made, and the files of a commit land in `folder`.

It answers what huggingface_hub asks for a snapshot: the repository's description with its commit and its file list
(as `siblings` and as a `tree`), and each file under `resolve`, with the headers from which the client makes its cache.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(kind: str, repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the files of `folder` as `repository` (kind: "models" or "datasets"); yields (endpoint, request log)."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    log: list[str] = []
    prefix = "" if kind == "models" else f"/{kind}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(send_body=False)

        def do_GET(self) -> None:
            self.answer(send_body=True)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            log.append(f"POST {path} {self.headers.get('Authorization', '')}")
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if path == "/api/repos/create":
                status, body = 200, {"url": f"http://{self.headers['Host']}/{repository}"}
            elif path == "/api/validate-yaml":  # the head of a model card
                status, body = 200, {"errors": [], "warnings": []}
            elif path == f"/api/{kind}/{repository}/preupload/main":
                asked = json.loads(sent)["files"]
                status, body = (
                    200,
                    {
                        "files": [
                            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked
                        ]
                    },
                )
            elif path == f"/api/{kind}/{repository}/commit/main":
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        target = folder / line["value"]["path"]
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(base64.b64decode(line["value"]["content"]))
                status, body = 200, {"commitUrl": f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}"}
                body |= {"commitOid": COMMIT}
            else:
                status, body = 404, {"error": "Repository not found"}
            data = json.dumps(body).encode()
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def answer(self, send_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            log.append(f"{self.command} {path}")
            headers = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT}
            status, body = 404, b'{"error": "Repository not found"}'
            if path.startswith(f"/api/{kind}/{repository}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                status, body = 200, json.dumps(entries).encode()
            elif path.rstrip("/").startswith(f"/api/{kind}/{repository}"):
                siblings = [{"rfilename": name} for name in files]
                described = {"id": repository, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []}
                status, body = 200, json.dumps(described).encode()
            elif path.startswith(f"{prefix}/{repository}/resolve/"):
                name = path.split("/resolve/")[1].partition("/")[2]
                if name in files:
                    status, body = 200, files[name]
                    headers |= {
                        "Content-Type": "application/octet-stream",
                        "ETag": f'"{hashlib.sha1(body).hexdigest()}"',
                        "Accept-Ranges": "bytes",
                    }
            if status == 404:
                headers["X-Error-Code"] = "RepoNotFound"
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: the requests are in `log`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
