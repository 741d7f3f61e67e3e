"""A loopback proxy before a real server that misbehaves as told: answers get lost, errors come first, bodies are cut.

The server behind it is real and keeps its state; only the wire is bad. A status code as a fault is the
proxy's own answer: the request does not arrive. Other requests are passed on byte for byte, so signatures stay valid.
"""

import http.client
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast

Fault = Literal["none", "lose answer", "200", "503", "409", "cut body", "damage upload"]
_HOP = {"connection", "transfer-encoding"}


@dataclass(frozen=True)
class Passage:
    """Bodies of one request and its answer, as they were on the wire.

    Args:
        method: The request's method.
        path: What it was for.
        status: How it was answered.
        sent: Body of the request; of a chunked upload what it decodes to [bytes].
        answered: Body of the answer, as far as it was sent [bytes].
    """

    method: str
    path: str
    status: int
    sent: int
    answered: int


@dataclass
class FlakyProxy:
    """What the proxy is told.

    Args:
        upstream: Host and port of the real server.
        faults: One per coming request of `methods`; when they are used up, all passes.
        methods: Which requests the faults are for.
        port: Where the proxy listens.
        seen: Methods of all requests since it was armed.
        passages: What crossed the wire.
    """

    upstream: str
    faults: deque[Fault] = field(default_factory=deque)
    methods: tuple[str, ...] = ()
    port: int = 0
    seen: list[str] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def arm(self, *faults: Fault, methods: tuple[str, ...]) -> None:
        self.faults, self.methods, self.seen = deque(faults), methods, []


@contextmanager
def flaky_proxy(upstream: str) -> Iterator[FlakyProxy]:
    """Run a proxy before `upstream` ("host:port") while the context lasts."""
    proxy = FlakyProxy(upstream)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.proxy = proxy
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


class _Server(ThreadingHTTPServer):
    proxy: FlakyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        # A client that waits for "100 Continue" has been answered by the base class already.
        proxy = cast("_Server", self.server).proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.seen.append(self.command)
        fault = proxy.faults.popleft() if proxy.faults and self.command in proxy.methods else None
        self.close_connection = True
        if fault in {"200", "503", "409"}:
            self._answer(int(fault), [], b"")
            return
        if fault == "damage upload":
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, answer = _pass_on(
            proxy.upstream, self.command, self.path, headers=dict(self.headers.items()), body=body
        )
        if fault == "lose answer":
            self._book(status, 0)
        else:
            self._answer(status, headers, answer, sent=len(answer) // 2 if fault == "cut body" else None)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, sent: int | None = None) -> None:
        self._book(status, len(body[:sent]))
        self.send_response_only(status)
        given = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if "content-length" not in given:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[:sent])

    def _book(self, status: int, answered: int) -> None:
        headers = self.headers
        sent = int(headers.get("x-amz-decoded-content-length") or headers.get("Content-Length") or 0)
        passage = Passage(self.command, self.path, status, sent, 0 if self.command == "HEAD" else answered)
        cast("_Server", self.server).proxy.passages.append(passage)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815  # the base class's names

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: tests read `seen`."""


def _pass_on(
    upstream: str, method: str, path: str, *, headers: Mapping[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(upstream, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in {"connection", "expect"}:
                connection.putheader(name, value)
        connection.endheaders(body or None)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()
