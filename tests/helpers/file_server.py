"""A server on this machine that misbehaves on request, and counts what it sends."""

import contextlib
import hashlib
import http.server
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Served:
    """What the server sends, and how; a test changes it while the server runs."""

    files: dict[str, bytes]
    answers: list[int] = field(default_factory=list)
    """Status of the next answers, before the file is sent."""
    retry_after: list[str] = field(default_factory=list)
    """Retry-After of the next of these."""
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off."""
    extra_length: int = 0
    """How much the answer claims to be longer than it is."""
    says_length: bool = True
    knows_ranges: bool = True
    range_shift: int = 0
    """How far beside what was asked for a range begins."""
    says_etag: bool = True
    bytes_in_s: float | None = None
    sent: int = 0
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""


class Handler(http.server.BaseHTTPRequestHandler):
    served: Served

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        served, asked = self.served, self.headers["Range"]
        served.requests.append((self.path, asked))
        content = served.files.get(self.path)
        status = served.answers.pop(0) if served.answers else 200 if content is not None else 404
        if status != 200 or content is None:
            self.send_response(status)
            if served.retry_after:
                self.send_header("Retry-After", served.retry_after.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if asked and served.knows_ranges and self.headers["If-Range"] in (None, etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) + served.range_shift  # type: ignore[index]
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if served.says_length:
            self.send_header("Content-Length", str(len(content) - start + served.extra_length))
        if served.says_etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.send(content[start:][: served.cuts.pop(0) if served.cuts else None])

    def send(self, content: bytes) -> None:
        step = 2**14
        with contextlib.suppress(OSError):  # a killed client
            for at in range(0, len(content), step):
                self.wfile.write(content[at : at + step])
                self.served.sent += len(content[at : at + step])
                if self.served.bytes_in_s:
                    time.sleep(step / self.served.bytes_in_s)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[tuple[str, Served]]:
    """Yield the address of a server and what it serves."""
    served = Served(files)
    handler = type("ThisHandler", (Handler,), {"served": served})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", served
        finally:
            server.shutdown()
            thread.join()
