"""A stand-in for the Hugging Face hub: what its client asks for when it makes a repository, commits files and reads
them, from the memory of this process.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from typing import Any


class Hub:
    """A server on this machine; a context manager.

    Attributes:
      endpoint: its address.
      files: by repository, then by name.
      tokens: what the requests that write were signed with.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def commit(self, repository: str) -> str:
        """The hash of all its files."""
        files = sorted(self.files[repository].items())
        return hashlib.sha1(b"".join(name.encode() + data for name, data in files)).hexdigest()


class _Answers(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, found: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization"))
        path, files = self.path.strip("/").split("/"), self.hub.files
        if path == ["api", "repos", "create"]:
            given = json.loads(body)
            name = "/".join(part for part in (given.get("organization"), given["name"]) if part)
            files.setdefault(name, {})
            return self.answer({"url": f"{self.hub.endpoint}/{name}"})
        if path == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        repository, action = "/".join(path[2:4]), path[4]
        if repository not in files:
            return self.answer({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if action == "preupload":  # every file comes with the commit itself
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self.answer({"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = self.hub.commit(repository)
        return self.answer({"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{commit}", "commitOid": commit})

    def do_GET(self) -> None:
        owner, name, _, _, *file = self.path.strip("/").split("/")
        files = self.hub.files.get(f"{owner}/{name}")
        data = None if files is None else files.get("/".join(file))
        if data is None:
            code = "RepoNotFound" if files is None else "EntryNotFound"
            return self.answer({"error": code}, 404, {"X-Error-Code": code})
        marks = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.hub.commit(f"{owner}/{name}")}
        return self.answer(data, headers=marks)

    do_HEAD = do_GET
