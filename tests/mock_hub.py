"""A hub on loopback: as much of the Hub's HTTP interface as pushing and loading a model repository needs."""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from aiohttp import web

Files = dict[str, bytes]


class MockHub:
    """Repositories in memory; `commits` counts what was pushed, files of `gated` ones are kept back."""

    def __init__(self):
        self.repos: dict[str, Files] = {}
        self.gated: set[str] = set()
        self.url = ""
        self.commits = 0

    def sha(self, repo: str) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.repos[repo].items()):
            digest.update(path.encode() + content)
        return digest.hexdigest()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=2**28)
        repo = "/api/models/{repo:[^/]+/[^/]+}"
        app.router.add_get("/api/whoami-v2", self._whoami)
        app.router.add_post("/api/validate-yaml", self._validate)
        app.router.add_post("/api/repos/create", self._create)
        app.router.add_post(repo + "/preupload/{revision}", self._preupload)
        app.router.add_post(repo + "/commit/{revision}", self._commit)
        app.router.add_get(repo + "/tree/{revision}", self._tree)
        app.router.add_get(repo + "/revision/{revision}", self._info)
        app.router.add_get(repo, self._info)
        app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", self._resolve)
        return app

    def _files(self, request: web.Request) -> Files:
        repo = request.match_info["repo"]
        if repo not in self.repos:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        return self.repos[repo]

    async def _whoami(self, request: web.Request) -> web.Response:
        return web.json_response({"type": "user", "name": "someone", "orgs": []})

    async def _validate(self, request: web.Request) -> web.Response:
        content = (await request.json())["content"]
        front = yaml.safe_load(content.split("---")[1])
        errors = [{"message": f"{key} missing"} for key in ("library_name", "pipeline_tag") if key not in front]
        return web.json_response({"errors": errors, "warnings": []}, status=400 if errors else 200)

    async def _create(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        created = self.repos.setdefault(repo, {})
        return web.json_response({"url": f"{self.url}/{repo}", "name": repo}, status=409 if created else 200)

    async def _preupload(self, request: web.Request) -> web.Response:
        files = (await request.json())["files"]
        plain = {"uploadMode": "regular", "shouldIgnore": False}
        return web.json_response({"files": [{"path": file["path"], **plain} for file in files]})

    async def _commit(self, request: web.Request) -> web.Response:
        files = self._files(request)
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.commits += 1
        repo = request.match_info["repo"]
        return web.json_response(
            {"commitUrl": f"{self.url}/{repo}/commit/{self.sha(repo)}", "commitOid": self.sha(repo)}
        )

    async def _info(self, request: web.Request) -> web.Response:
        files, repo = self._files(request), request.match_info["repo"]
        siblings = [{"rfilename": path} for path in files]
        return web.json_response(
            {"id": repo, "sha": self.sha(repo), "siblings": siblings, "tags": [], "private": False}
        )

    async def _tree(self, request: web.Request) -> web.Response:
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self._files(request).items()
        ]
        return web.json_response(entries)

    async def _resolve(self, request: web.Request) -> web.Response:
        if request.match_info["repo"] in self.gated:
            raise web.HTTPForbidden(headers={"X-Error-Code": "GatedRepo"})
        content = self._files(request).get(request.match_info["path"])
        if content is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        headers = {"ETag": etag, "X-Repo-Commit": self.sha(request.match_info["repo"])}
        return web.Response(body=content, headers=headers)


@contextmanager
def running() -> Iterator[MockHub]:
    """A mock hub served from a thread of its own, at `hub.url`."""
    hub, loop, ready = MockHub(), asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(hub.application(), access_log=None)

    async def serve() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        hub.url = f"http://{host}:{port}"
        ready.set()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield hub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
