"""A small Hub on this machine that speaks the API of the Hugging Face Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from servers import Handler

TOKEN = "hf_of_the_tests"


class HubHandler(Handler):
    """The part of the Hub's API that huggingface_hub uses to read and to commit; weights are sent from a host of their own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.asked.append(f"{self.command} {path}")
        if path.startswith("/cdn/"):
            hub.tokens_at_cdn.append(self.headers.get("Authorization"))
            return self.send(200, hub.cdn[path.removeprefix("/cdn/")])
        if path.startswith("/api/models/us/unwell"):
            return self.refuse(500, "")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if (repo := self.repo(found[1])) is None or (
                files := self.files(repo, found[2] or "main")
            ) is None:
                return None
            siblings = [
                {"rfilename": name, "size": repo.get("sizes", {}).get(name, len(data))}
                for name, data in files.items()
            ]
            return self.answer(
                {
                    "id": found[1],
                    "sha": commit(files),
                    "private": repo["private"],
                    "siblings": siblings,
                }
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            if (repo := self.repo(found[1])) is None or (
                files := self.files(repo, found[2])
            ) is None:
                return None
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": commit({name: data})}
                    for name, data in files.items()
                ]
            )
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/1|[^/]+)/(.+)", path):
            if (repo := self.repo(found[1])) is None or (
                files := self.files(repo, found[2])
            ) is None:
                return None
            if repo["gated"]:
                return self.refuse(403, "GatedRepo")
            if found[3] not in files:
                return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit(files))
            data = files[found[3]]
            about = {
                "X-Repo-Commit": commit(files),
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            }
            if not found[3].endswith(".safetensors"):
                return self.send(200, data, **about)
            oid = hashlib.sha256(data).hexdigest()
            hub.cdn[oid] = data
            about |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": about["ETag"]}
            return self.send(302, **about, Location=f"http://localhost:{hub.server_port}/cdn/{oid}")
        self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            exists = name in hub.repos
            private = asked.get("private", False) or asked.get("visibility") == "private"
            hub.repos.setdefault(name, new(private=private))
            return self.answer({"url": f"{hub.url}/{name}"}, 409 if exists else 200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            modes = [
                (f["path"], "lfs" if f["path"].endswith(".safetensors") else "regular")
                for f in json.loads(body)["files"]
            ]
            return self.answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]}
            )
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/cdn/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            revisions = hub.repos[found[1]]["revisions"]
            files = dict(revisions["main"])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.cdn[value["oid"]]
            revisions["main"] = files
            return self.answer(
                {"commitUrl": f"{hub.url}/{found[1]}/commit/x", "commitOid": commit(files)}
            )
        self.refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        self.server.asked.append(f"PUT {self.path}")
        self.server.cdn[self.path.removeprefix("/cdn/")] = self.rfile.read(
            int(self.headers["Content-Length"])
        )
        self.send(200)

    def repo(self, name: str) -> dict[str, Any] | None:
        found = self.server.repos.get(name)
        if found is None or (
            found["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            return self.refuse(401, "RepoNotFound")
        return found

    def files(self, repo: dict[str, Any], revision: str) -> dict[str, bytes] | None:
        known = {
            **repo["revisions"],
            **{commit(files): files for files in repo["revisions"].values()},
        }
        return known[revision] if revision in known else self.refuse(404, "RevisionNotFound")

    def answer(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.send(status, X_Error_Code=code, **headers)


def new(
    private: bool = False, gated: bool = False, **revisions: dict[str, bytes]
) -> dict[str, Any]:
    return {"private": private, "gated": gated, "revisions": {"main": {}, **revisions}}


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(
        b"".join(name.encode() + data for name, data in sorted(files.items()))
    ).hexdigest()
