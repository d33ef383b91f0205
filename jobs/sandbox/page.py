"""`/stats` for programs and people, `/stats/items` for checkers, `/stats/reset`."""

from __future__ import annotations

import html
from typing import Any

import msgspec
from aiohttp import web

from penstock.jobs.sandbox.ledger import Ledger, small

_LINES = 1000
"""Items written at once."""


async def respond(request: web.BaseRequest, ledger: Ledger) -> web.StreamResponse:
    match request.path.rstrip("/"), request.method:
        case "/stats", "GET":
            stats = ledger.stats()
            if "text/html" in request.headers.get("Accept", ""):
                return web.Response(text=_page(stats), content_type="text/html")
            return web.Response(body=msgspec.json.encode(stats), content_type="application/json")
        case "/stats/items", "GET":
            return await _items(request, ledger)
        case "/stats/reset", "POST":
            ledger.reset()
            return web.Response(body=b"{}", content_type="application/json")
        case _:
            return web.Response(status=404, body=b'{"error":"GET /stats, GET /stats/items, POST /stats/reset"}')


async def _items(request: web.BaseRequest, ledger: Ledger) -> web.StreamResponse:
    """JSON lines; `?more_than=1` lists what was paid for twice."""
    asked = request.query.get("more_than", "0")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    lines: list[bytes] = []
    for line in ledger.items(small(asked)):
        lines.append(line)
        if len(lines) >= _LINES:
            await response.write(b"".join(lines))
            lines.clear()
    await response.write(b"".join(lines))
    await response.write_eof()
    return response


def _page(stats: dict[str, Any]) -> str:
    models: dict[str, dict[str, Any]] = stats["models"]
    failed: dict[str, int] = stats["failed"]
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{m['calls']:,}<td>{m['input']:,}<td>{m['output']:,}<td>{m['pretend_usd']:.4f}<td>{_right(m)}"
        for name, m in models.items()
    )
    faults = ", ".join(f"{html.escape(kind)}: {n:,}" for kind, n in failed.items()) or "none"
    return (
        "<!doctype html><meta charset=utf-8><title>Penstock sandbox</title>"
        "<style>body{font:16px system-ui;margin:2em}td,th{padding:.2em 1em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}</style><h1>Penstock sandbox</h1>"
        f"<p>{stats['served']:,} answers for {stats['items']:,} items; "
        f"<b>{stats['second_payments']:,} second payments</b></p><p>Failures: {faults}</p>"
        "<table><tr><th>Model<th>Calls<th>Input tokens<th>Output tokens<th>Pretend $<th>Right" + rows + "</table>"
    )


def _right(model: dict[str, Any]) -> str:
    """Share of right answers where the truth was known."""
    return f"{model['right'] / model['known']:.1%} of {model['known']:,}" if model.get("known") else "–"
