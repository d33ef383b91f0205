"""A schema registry that knows one schema: what a record with any other id meets."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCHEMA = '{"type": "record", "name": "Row", "fields": [{"name": "text", "type": "string"}]}'
KNOWN = 1


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path.split("?")[0] == f"/schemas/ids/{KNOWN}"
        body = json.dumps({"schema": SCHEMA} if known else {"error_code": 40403, "message": "Schema not found"})
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def schema_registry() -> Generator[str]:
    """Yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
