"""A Hub on loopback: as much of the Hub's HTTP API as huggingface_hub and transformers use for models and Spaces, in memory."""

import base64
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

from tests.hub.repository import Blob, HubError, Repo


USER, TOKEN = "tester", "hf_loopback"
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*tfevents* filter=lfs diff=lfs merge=lfs -text\n"

# By the kind of a fault.
STATUSES = {"error": 500, "busy": 503, "limited": 429}


@dataclass
class Fault:
    r"""
    What goes wrong with requests that match.

    Args:
        method (`str`):
            HTTP method.
        path (`str`):
            Regular expression, searched in the path.
        kind (`str`):
            `"error"` (status 500), `"busy"` (503) and `"limited"` (429), both to be tried again after a second, `"page"`
            (a page of HTML with status 200), `"drop"` (the connection closes in the middle of the request), `"deaf"` (the
            request is carried out and the connection closes without an answer), `"truncate"` (the connection closes
            in the middle of the answer) or `"shorten"` (half the answer, as if it were the whole).
        times (`int`):
            How often.
    """

    method: str
    path: str
    kind: str
    times: int = 1


class Hub:
    """
    The state of the Hub, and the server in a thread of its own. `requests` lists method and path of all requests. A Space
    is called `spaces/user/name`.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return {path: blob.content for path, blob in repo.commits[repo.resolve(revision)].items()}

    def edit(self, repo_id: str, path: str, content: bytes) -> None:
        """As somebody does in the browser."""
        repo = self.repos[repo_id]
        repo.commit("main", {**repo.commits[repo.branches["main"]], path: Blob(content, False)}, f"Edit {path}")

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """
        Environment of a process that takes this server for the Hub, with its caches in `home`. Xet, a storage protocol
        of its own besides the Hub's API, is switched off: files travel by the Hub's other protocol, LFS.
        """
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
        }
        environment |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return environment if token is None else environment | {"HF_TOKEN": token}

    # The API. Every method returns what becomes JSON.

    def whoami(self, user: str | None) -> dict:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return {
            "type": "user",
            "id": "1",
            "name": user,
            "fullname": user,
            "orgs": [],
            "auth": {"type": "access_token"},
        }

    def create_repo(self, user: str | None, query: dict) -> dict:
        is_space = query.get("type") == "space"
        repo_id = f"{'spaces/' * is_space}{query.get('organization') or self.whoami(user)['name']}/{query['name']}"
        self.check_write(user, repo_id)
        answer = {"url": f"{self.url}/{repo_id}", "name": repo_id}
        if repo_id in self.repos:
            raise HubError(409, json.dumps({"error": "You already created this repo", **answer}))
        self.repos[repo_id] = Repo(is_private=query.get("visibility") == "private" or bool(query.get("private")))
        files = {".gitattributes": GITATTRIBUTES}
        if is_space:
            files["README.md"] = f"---\ntitle: {query['name']}\nsdk: {query['sdk']}\n---\n".encode()
        files = {path: Blob(content, False) for path, content in files.items()}
        self.repos[repo_id].commit("main", files, "initial commit")
        return answer

    def check_write(self, user: str | None, repo_id: str) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if not repo_id.removeprefix("spaces/").startswith(f"{user}/"):
            raise HubError(403, f"You don't have the rights to write to {repo_id}")

    def readable(self, user: str | None, repo_id: str) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.is_private and user is None):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def validate_yaml(self, content: str) -> dict:
        """The Hub's form of `model-index`, and that there are metadata at all."""
        match = re.match(r"\s*---\n(.*?)\n---\s*?\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(match[1]) if match else None
            for model in (data or {}).get("model-index", []):
                for result in model["results"]:
                    _ = model["name"], result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"]
                    _ = [(metric["type"], metric["value"]) for metric in result["metrics"]]
        except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
            raise HubError(400, json.dumps({"errors": [{"message": f"{error!r}"}], "warnings": []})) from error
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def info(self, repo_id: str, repo: Repo, revision: str) -> dict:
        sha = repo.resolve(revision)
        answer = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repo.is_private, "tags": []}
        return answer | {"siblings": [{"rfilename": path} for path in repo.commits[sha]]}

    def tree(self, repo: Repo, revision: str, folder: str = "") -> list[dict]:
        files = repo.commits[repo.resolve(revision)]
        found = {path: blob for path, blob in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not found:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        return [_entry(path, blob) for path, blob in found.items()]

    def branch(self, repo: Repo, branch: str, start: str) -> dict:
        if branch in repo.branches:
            raise HubError(409, json.dumps({"error": f"Reference already exists: {branch}"}))
        repo.branches[branch] = repo.resolve(start)
        return {}

    def preupload(self, repo: Repo, revision: str, files: list[dict]) -> dict:
        present, modes = repo.commits[repo.resolve(revision)], []
        for file in files:
            is_lfs = file["path"].endswith(".safetensors") or b"\0" in base64.b64decode(file["sample"])
            oid = present[file["path"]].oid if file["path"] in present else None
            modes.append({"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "oid": oid})
        return {"files": [{**mode, "shouldIgnore": False} for mode in modes]}

    def lfs_batch(self, objects: list[dict]) -> dict:
        answers = []
        for wanted in objects:
            upload = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}
            answers.append(wanted if wanted["oid"] in self.large_files else {**wanted, "actions": upload})
        return {"transfer": "basic", "objects": answers}

    def lfs_upload(self, oid: str, content: bytes) -> dict:
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "The content is not what its SHA-256 says")
        self.large_files[oid] = content
        return {}

    def commit(self, repo_id: str, repo: Repo, branch: str, lines: list[dict]) -> dict:
        head = repo.resolve(branch)
        files, header = dict(repo.commits[head]), {}
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.large_files:
                    raise HubError(400, f"{value['path']} was never uploaded")
                files[value["path"]] = Blob(self.large_files[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise HubError(400, f"Unknown operation {key}")
        if header.get("parentCommit", head) != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        sha = repo.commit(branch, files, header["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}", "hookOutput": ""}

    def answer(self, user: str | None, method: str, path: str, body: bytes) -> dict | list:
        """The JSON of everything but `resolve`."""
        query = json.loads(body) if body and not path.startswith("/lfs/") and "/commit/" not in path else {}
        fixed = {
            ("GET", "/api/whoami-v2"): lambda: self.whoami(user),
            ("POST", "/api/repos/create"): lambda: self.create_repo(user, query),
            ("POST", "/api/validate-yaml"): lambda: self.validate_yaml(query["content"]),
        }
        if (method, path) in fixed:
            return fixed[method, path]()
        if method == "PUT" and path.startswith("/lfs/"):
            return self.lfs_upload(path.removeprefix("/lfs/"), body)
        if match := re.fullmatch(r"/(.+?/.+?)\.git/info/lfs/objects/batch", path):
            self.check_write(user, match[1])
            return self.lfs_batch(query["objects"])
        match = re.fullmatch(r"/api/(models|spaces)/([^/]+/[^/]+)(?:/([\w-]+))?(?:/([^/]+))?(?:/(.+))?", path)
        if match is None:
            raise HubError(404, f"Nothing answers {method} {path} here")
        kind, repo_id, verb, *rest = match.groups()
        repo_id = f"spaces/{repo_id}" if kind == "spaces" else repo_id
        revision, folder = (unquote(part or "") for part in rest)
        repo = self.readable(user, repo_id)
        if method == "POST":
            self.check_write(user, repo_id)
        answers = {
            ("GET", None): lambda: self.info(repo_id, repo, "main"),
            ("GET", "revision"): lambda: self.info(repo_id, repo, revision),
            ("GET", "tree"): lambda: self.tree(repo, revision, folder),
            ("POST", "branch"): lambda: self.branch(repo, revision, query.get("startingPoint", "main")),
            ("POST", "preupload"): lambda: self.preupload(repo, revision, query["files"]),
            ("POST", "commit"): lambda: self.commit(repo_id, repo, revision, [json.loads(line) for line in body.splitlines()]),
        }  # fmt: skip
        if (method, verb) not in answers:
            raise HubError(404, f"Nothing answers {method} {path} here")
        return answers[method, verb]()

    def fault_of(self, method: str, path: str) -> str | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                fault.times -= 1
                return fault.kind
        return None


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    lfs = {"lfs": {"oid": blob.oid, "size": len(blob.content), "pointerSize": 134}} if blob.is_lfs else {}
    return entry | lfs


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        self.fault = self.hub.fault_of(self.command, path)
        if self.fault == "drop":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self.hang_up()
        body = self.read_body()
        try:
            if self.fault == "page":
                return self.send(200, b"<!DOCTYPE html><title>Please sign in</title>", {"Content-Type": "text/html"})
            if self.fault in STATUSES:
                raise HubError(STATUSES[self.fault], "Internal error, as the test wants it")
            user = self.user()
            if match := re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.send_file(user, match[1], *map(unquote, match.groups()[1:]))
            content = json.dumps(self.hub.answer(user, self.command, path, body)).encode()
        except HubError as error:
            return self.send_failure(error)
        if self.fault == "deaf":
            return self.hang_up()
        self.send(200, content, {"Content-Type": "application/json"})

    do_HEAD = do_POST = do_PUT = do_GET

    def user(self) -> str | None:
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        if authorization != f"Bearer {TOKEN}":
            raise HubError(401, "Invalid credentials in Authorization header")
        return USER

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send_file(self, user: str | None, repo_id: str, revision: str, path: str) -> None:
        repo = self.hub.readable(user, repo_id)
        sha = repo.resolve(revision)
        blob = repo.commits[sha].get(path)
        headers = {"X-Repo-Commit": sha}
        if blob is None:
            return self.send_failure(HubError(404, f"{path} does not exist", "EntryNotFound"), headers)
        headers |= {"ETag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.content)), "Accept-Ranges": "bytes"}
        content, status = blob.content, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, size = int(match[1]), len(content)
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            content, status = content[start:], 206
        self.send(status, content, headers)

    def send_failure(self, error: HubError, headers: dict[str, str] | None = None) -> None:
        message = str(error)
        headers = {**(headers or {}), "X-Error-Message": message.replace("\n", " ")}
        if error.status in (429, 503):
            headers["Retry-After"] = "1"
        if error.code is not None:
            headers["X-Error-Code"] = error.code
        body = message if message.startswith("{") else json.dumps({"error": message})
        self.send(error.status, body.encode(), headers | {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        half = content[: len(content) // 2]
        if self.fault == "shorten":
            content = half
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(half if self.fault == "truncate" else content)
        if self.fault == "truncate":
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
