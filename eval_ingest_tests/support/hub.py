"""A small stand-in for the Hugging Face Hub on 127.0.0.1: what huggingface_hub asks of one.

Repositories of data sets with commits, small files and LFS files; no accounts, no xet.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from eval_ingest_tests.support.memory_bucket import Died

LFS_BYTES = 4096
"""Larger files are LFS files; the Hub decides by name and content."""


class Hub:
    """The state: commits of each repository, and blobs by their SHA-256."""

    url = ""

    def __init__(self) -> None:
        self.change: Callable[[str], AbstractContextManager[None]] = contextlib.nullcontext
        """Around each upload and each commit; what it raises is refused."""
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        """Commits by ORG/REPO, and of branches by ORG/REPO@BRANCH."""
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.fail_after: int | None = None
        """Uploads of blobs that are taken before the connection is refused."""
        self.meanwhile: list[Callable[[], object]] = []
        """What others do, one right before each commit that comes."""

    def is_used_by(self, patch: pytest.MonkeyPatch) -> None:
        """Have huggingface_hub, which has read the environment by now, take it for the Hub."""
        from huggingface_hub import constants

        patch.setenv("HF_ENDPOINT", self.url)
        patch.setattr(constants, "ENDPOINT", self.url)
        template = f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a commit, given by its id, or of the last one of a branch."""
        return self.repos[self.branch(repo, revision)][self.number(repo, revision)]

    def branch(self, repo: str, revision: str = "main") -> str:
        """The key of a branch, which is given by its name or by one of its commits."""
        if revision == "main":
            return repo
        keys = [repo, *(key for key in self.repos if key.startswith(f"{repo}@"))]
        named = [key for key in keys if key == f"{repo}@{revision}"]
        return (named or [key for key in keys if revision[:8] == sha(key, 0)[:8]])[0]

    def number(self, repo: str, revision: str = "main") -> int:
        """The place of a commit in its branch."""
        key = self.branch(repo, revision)
        is_name = revision == "main" or key == f"{repo}@{revision}"
        return len(self.repos[key]) - 1 if is_name else int(revision[8:], 16)

    def head(self, repo: str, revision: str = "main") -> str:
        """The id of a commit."""
        return sha(self.branch(repo, revision), self.number(repo, revision))


def sha(branch: str, number: int) -> str:
    """The id of a commit by its branch and number."""
    return f"{hashlib.sha1(branch.encode()).hexdigest()[:8]}{number:032x}"


def described(path: str, data: bytes) -> dict[str, Any]:
    """A file as the API tells of it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if len(data) > LFS_BYTES:
        digest = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return found


def folder_of(path: str) -> dict[str, Any]:
    """A folder as the API tells of it."""
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b""
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        split = urlsplit(self.path)
        path, self.query = unquote(split.path), parse_qs(split.query)
        self.hub.requests.append(f"{method} {path}")
        for pattern, call in ROUTES:
            found = re.fullmatch(pattern, path)
            if found:
                call(self, *found.groups())
                return
        self.reply({"error": f"no route for {method} {path}"}, 404)

    def reply(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str) -> None:
        self.reply({"error": code}, 404, X_Error_Code=code)

    # ------------------------------------------------------------------------------- the API

    def create(self) -> None:
        asked = json.loads(self.body)
        repo = (
            f"{asked['organization']}/{asked['name']}"
            if asked.get("organization")
            else asked["name"]
        )
        status = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, [{}])
        self.hub.private.setdefault(repo, bool(asked.get("private")))
        self.reply({"url": f"{self.hub.url}/datasets/{repo}", "id": repo}, status)

    def validate_yaml(self) -> None:
        header = yaml.safe_load(json.loads(self.body)["content"].split("---\n", 2)[1])
        wrong = [] if header.get("license") else [{"message": "no license"}]
        self.reply({"errors": wrong, "warnings": []})

    def info(self, repo: str, revision: str | None = None) -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        files = [{"rfilename": path} for path in sorted(self.hub.files(repo, revision or "main"))]
        found = {"id": repo, "sha": self.hub.head(repo, revision or "main"),
                 "siblings": files, "tags": [],
                 "private": self.hub.private[repo], "disabled": False, "gated": False,
                 "downloads": 0, "likes": 0}  # fmt: skip
        self.reply(found)

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        prefix = f"{folder.strip('/')}/" if folder and folder.strip("/") else ""
        files = {p: d for p, d in self.hub.files(repo, revision).items() if p.startswith(prefix)}
        if prefix and not files:
            self.missing("EntryNotFound")
            return
        deep = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
        found, folders = [], set()
        for path, data in sorted(files.items()):
            parts = path[len(prefix) :].split("/")
            folders |= {
                prefix + "/".join(parts[:k]) for k in range(1, len(parts)) if deep or k == 1
            }
            if deep or len(parts) == 1:
                found.append(described(path, data))
        self.reply(
            [
                *(
                    {"type": "directory", "path": f, "size": 0, "oid": "0" * 40}
                    for f in sorted(folders)
                ),
                *found,
            ]
        )

    def paths_info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = parse_qs(self.body.decode()).get("paths", [])
        files = self.hub.files(repo, revision)
        found = [described(path, files[path]) for path in wanted if path in files]
        found += [
            folder_of(path)
            for path in wanted
            if path not in files and any(name.startswith(f"{path}/") for name in files)
        ]
        self.reply(found)

    def preupload(self, repo: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        self.reply({"files": [
            {"path": f["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if f["size"] > LFS_BYTES else "regular"}
            for f in files
        ]})  # fmt: skip

    def lfs_batch(self, repo: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            one: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/blobs/{wanted['oid']}"}}
            objects.append(one)
        self.reply({"transfer": "basic", "objects": objects})

    def blob(self, oid: str) -> None:
        if self.hub.fail_after is not None and len(self.hub.uploads) >= self.hub.fail_after:
            self.reply({"error": "not today"}, 403)
            return
        assert hashlib.sha256(self.body).hexdigest() == oid

        def keep() -> None:
            self.hub.blobs[oid] = self.body
            self.hub.uploads.append(oid)

        if self.changed(f"hub: {oid}", keep):
            self.reply(b"")

    def changed(self, what: str, do: Callable[[], None]) -> bool:
        """Make a change; False if it was refused, done or not, and that was told."""
        try:
            with self.hub.change(what):
                do()
        except (OSError, Died):
            self.reply({"error": "not today"}, 403)
            return False
        return True

    def commit(self, repo: str, revision: str) -> None:
        if self.hub.meanwhile:
            self.hub.meanwhile.pop(0)()
        branch = self.hub.repos[self.hub.branch(repo, revision)]
        files = dict(branch[-1])
        for line in self.body.splitlines():
            key, value = (found := json.loads(line))["key"], found["value"]
            if key == "header":
                parent = value.get("parentCommit")
                if parent not in (None, self.hub.head(repo, revision)):
                    self.reply({"error": "A commit has happened since."}, 412)
                    return
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        if not self.changed("hub: a commit", lambda: branch.append(files)):
            return
        oid = self.hub.head(repo, revision)
        self.reply(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"}
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if repo not in self.hub.repos:
            self.missing("RepoNotFound")
            return
        data = self.hub.files(repo, revision).get(path)
        if data is None:
            self.missing("EntryNotFound")
            return
        told = described(path, data)
        etag = told.get("lfs", told)["oid"]
        headers = {
            "ETag": f'"{etag}"',
            "X_Repo_Commit": self.hub.head(repo, revision),
            "Accept_Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and self.command == "GET":
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(data)}"
            self.reply(data[start : end + 1], 206, **headers)
            return
        self.reply(data, **headers)


_REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Any]] = [
    ("/api/repos/create", Handler.create),
    ("/api/validate-yaml", Handler.validate_yaml),
    (f"/api/datasets/{_REPO}/preupload/(.+)", Handler.preupload),
    (f"/api/datasets/{_REPO}/commit/(.+)", Handler.commit),
    (f"/api/datasets/{_REPO}/paths-info/([^/]+)", Handler.paths_info),
    (f"/api/datasets/{_REPO}/tree/([^/]+)(/.*)?", Handler.tree),
    (f"/api/datasets/{_REPO}/revision/([^/]+)", Handler.info),
    (f"/api/datasets/{_REPO}", Handler.info),
    (f"/datasets/{_REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("/blobs/([0-9a-f]+)", Handler.blob),
    (f"/datasets/{_REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub of its own, as long as it is needed."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
