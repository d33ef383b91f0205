"""A schema registry that speaks the part of Confluent's REST API that we use, over HTTP."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


class Registry:
    """Subjects and schemas by id, as `GET /schemas/ids/{id}` and `GET /subjects/{subject}/versions/{version}`; new ones
    by `POST /subjects/{subject}/versions`."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[str] = []
        self.status: int | None = None
        self.broken: set[int] = set()
        """Ids that it chokes on."""
        self.incompatible = False
        self.url = ""

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/schemas/ids/{id}", self.by_id)
        app.router.add_get("/subjects/{subject}/versions/{version}", self.by_subject)
        app.router.add_post("/subjects/{subject}/versions", self.add)
        return app

    async def by_id(self, request: web.Request) -> web.Response:
        number = int(request.match_info["id"])
        if number in self.broken:
            return web.json_response({"error_code": 50001, "message": "Error in the backend data store"}, status=500)
        return self.answer(request, self.schemas.get(number), 40403)

    async def by_subject(self, request: web.Request) -> web.Response:
        found = self.subjects.get((request.match_info["subject"], request.match_info["version"]))
        return self.answer(request, found, 40401)

    async def add(self, request: web.Request) -> web.Response:
        given, subject = await request.json(), request.match_info["subject"]
        if self.incompatible:
            said = {"error_code": 409, "message": "Schema being registered is incompatible with an earlier schema"}
            return web.json_response(said, status=409)
        number = next((n for n, known in self.schemas.items() if known == given), 1 + max(self.schemas, default=0))
        self.schemas[number] = self.subjects[subject, "latest"] = given
        return self.answer(request, {"id": number}, 0)

    def answer(self, request: web.Request, found: dict[str, Any] | None, code: int) -> web.Response:
        self.asked.append(request.path_qs)
        if self.status is not None:
            return web.Response(status=self.status)
        if request.headers.get("Authorization") != "Basic " + base64.b64encode(b"me:secret").decode():
            return web.json_response({"error_code": 401, "message": "Unauthorized"}, status=401)
        if found is None:
            return web.json_response({"error_code": code, "message": "not found"}, status=404)
        return web.json_response(found)


@contextlib.asynccontextmanager
async def running(tls: ssl.SSLContext | None = None) -> AsyncIterator[Registry]:
    """Started; its `url` is set."""
    found = Registry()
    runner = web.AppRunner(found.application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    found.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()
