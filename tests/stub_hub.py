"""A local Hugging Face Hub with the endpoints that huggingface_hub uses to push and pull models."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_stub"


@dataclass
class Repository:
    private: bool
    gated: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])

    def revisions(self) -> dict[str, dict[str, bytes]]:
        """Return the files of each revision: of each commit, of "main", and of the tag "v1".

        The tag is that of the first commit that adds files.
        """
        revisions = {sha(number): files for number, files in enumerate(self.commits)}
        revisions["main"] = self.commits[-1]
        if len(self.commits) > 1:
            revisions["v1"] = self.commits[1]
        return revisions

    def commit(self, revision: str) -> str:
        """Return the SHA of a revision."""
        wanted = self.revisions()[revision]
        for number, files in enumerate(self.commits):
            if files is wanted:
                return sha(number)
        raise KeyError(revision)


def sha(number: int) -> str:
    return f"{number:040x}"


class Hub(ThreadingHTTPServer):
    """A server with its repositories and a list of the requests it received."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> content of a large file
        self.is_full = False
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                answer(self, *match.groups())
                return
        self.answer(404, {"error": f"the stub does not implement {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def repository(self, name: str) -> Repository | None:
        """Return a repository if the client may read it; otherwise answer with an error."""
        repository = self.server.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            status = 404 if allowed else 401
            self.answer(status, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        if repository.gated:
            self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
            return None
        return repository

    def files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the SHA and the files of a revision; if there is none, answer with an error."""
        repository = self.repository(name)
        if repository is None:
            return None
        if revision not in repository.revisions():
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return None
        return repository.commit(revision), repository.revisions()[revision]

    def info(self, name: str, revision: str | None) -> None:
        if found := self.files(name, revision or "main"):
            commit, files = found
            private = self.server.repositories[name].private
            siblings = [{"rfilename": path} for path in files]
            content = {"id": name, "sha": commit, "private": private, "siblings": siblings}
            self.answer(200, content | {"tags": []})

    def tree(self, name: str, revision: str) -> None:
        if found := self.files(name, revision):
            _, files = found
            entries = []
            for path, body in files.items():
                entry = {"type": "file", "path": path, "size": len(body), "oid": git_sha(body)}
                entries.append(entry)
            self.answer(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if found := self.files(name, revision):
            commit, files = found
            if path not in files:
                headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
                self.answer(404, {"error": "Entry not found"}, **headers)
                return
            etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
            self.answer(200, files[path], ETag=etag, X_Repo_Commit=commit)

    def create(self) -> None:
        wanted = json.loads(self.body)
        if wanted["organization"] != "me" or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            error = "You don't have the rights to create a model under this namespace"
            self.answer(403, {"error": error})
            return
        name = f"{wanted['organization']}/{wanted['name']}"
        self.server.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        self.answer(200, {"url": f"{self.server.url}/{name}"})

    def validate(self) -> None:
        license_line = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.M)
        if license_line is None or license_line[1] not in ("apache-2.0", "mit"):
            error = {"message": '"license" must be one of [apache-2.0, mit]'}
            self.answer(400, {"errors": [error], "warnings": []})
            return
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str) -> None:
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        self.answer(200, {"files": files})

    def batch(self, name: str) -> None:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer(400, {"error": "the digest does not match"})
            return
        if self.server.is_full:
            self.answer(403, {"error": "no space left for you"})
            return
        self.server.large[oid] = self.body
        self.answer(200)

    def commit(self, name: str) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.commits[-1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        repository.commits.append(files)
        url = f"{self.server.url}/{name}/commit/1"
        self.answer(200, {"commitUrl": url, "commitOid": repository.commit("main")})


def git_sha(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"  # owner/repository
# Methods, pattern of the path, and the function that is called with the pattern's groups.
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{NAME}/preupload/main", Handler.preupload),
    ("POST", f"/{NAME}[.]git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/large/([0-9a-f]{64})", Handler.upload),
    ("POST", f"/api/models/{NAME}/commit/main", Handler.commit),
    ("GET", f"/api/models/{NAME}(?:/revision/(.+))?", Handler.info),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", Handler.tree),
    ("GET HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
)
