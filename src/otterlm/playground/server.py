"""Serves the page and its comparisons on this machine, by the standard library alone."""

import json
import threading
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from otterlm.errors import OtterError
from otterlm.playground.about import about
from otterlm.playground.events import events
from otterlm.playground.page_requests import read_request
from otterlm.playground.problems import FieldError
from otterlm.playground.session import Session

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".json": "application/json"}
LONGEST = 2**20
"""Bytes of a request."""

# Nothing is fetched from elsewhere, and no other page can show this one.
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class Server(ThreadingHTTPServer):
    """The server holds a session.

    Args:
        session: makes the comparisons.
        base: the base's name.
        address: host and port; port 0 takes a free one.
        folders: adapters that people may load in the page, by name.

    Raises:
        OSError: the port is taken.
    """

    daemon_threads = True

    def __init__(
        self, session: Session, base: str, address: tuple[str, int], folders: Mapping[str, Path] | None = None
    ) -> None:
        self.session = session
        self.base = base
        self.folders = dict(folders or {})
        self._loading = threading.Lock()
        super().__init__(address, Handler)

    @property
    def url(self) -> str:
        """Returns the page's address."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def about(self) -> dict[str, Any]:
        """Describes the session, see `otterlm.playground.about`."""
        return about(self.session, self.base, [name for name in self.folders if name not in self.session.signals])

    def load(self, name: Any) -> None:
        """Loads one of `folders`.

        Raises:
            OtterError: there is no such adapter, or it does not fit.
        """
        with self._loading:
            if not isinstance(name, str) or name not in self.folders or name in self.session.signals:
                raise OtterError(f"there is no adapter {name!r} to load")
            self.session.load(name, self.folders[name])


class Handler(BaseHTTPRequestHandler):
    """Answers one request: a file of the page, what it can choose, a comparison, or an adapter to load."""

    server: Server

    def do_GET(self) -> None:
        """Sends a file of the page, or `/about`."""
        if not self._is_ours():
            return
        path = self.path.split("?")[0]
        if path == "/about":
            self._send_json(self.server.about())
            return
        name = "index.html" if path == "/" else path.removeprefix("/")
        file = files("otterlm.playground") / "static" / name
        if "/" in name or Path(name).suffix not in TYPES or not file.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._begin(TYPES[Path(name).suffix])
        self.wfile.write(file.read_bytes())

    def do_POST(self) -> None:
        """Streams the events of `/compare`, a line each, or loads an adapter for `/load`."""
        # A page of another site cannot send this type without asking first.
        if not self._is_ours() or self.headers.get_content_type() != "application/json":
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        length = self.headers.get("Content-Length") or "0"
        if length.isdecimal() and int(length) > LONGEST:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            body = json.loads(self.rfile.read(int(length)) if length.isdecimal() else b"")
        except (ValueError, RecursionError):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        if self.path == "/compare":
            self._send_events(_compared(self.server.session, body))
        elif self.path == "/load":
            try:
                self.server.load(body)
            except OtterError as error:
                self._send_json({"error": " ".join(str(error).split())})
            else:
                self._send_json(self.server.about())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing: stdout has results alone."""

    def _is_ours(self) -> bool:
        """Refuses a name that a page of another site made for this machine, where only this machine is served."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        local = ("127.0.0.1", "localhost", "[::1]")
        ours = self.server.server_address[0] not in ("127.0.0.1", "::1") or host in local
        if not ours:
            self.send_error(HTTPStatus.FORBIDDEN)
        return ours

    def _begin(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def _send_json(self, value: Any) -> None:
        self._begin("application/json")
        self.wfile.write(_json(value))

    def _send_events(self, lines: Iterable[dict[str, Any]]) -> None:
        """Writes events until they end, or until nobody reads them any more."""
        self._begin("application/x-ndjson")
        try:
            for line in lines:
                self.wfile.write(_json(line) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


def _compared(session: Session, body: Any) -> Iterable[dict[str, Any]]:
    try:
        prompt, settings = read_request(body)
    except FieldError as error:
        return [{"kind": "error", "field": error.field, "message": str(error)}]
    return events(session, prompt, settings)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
