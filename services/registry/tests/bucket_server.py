"""A bucket on loopback for the faults that a real object store can't be made to show: it answers as S3 does, or as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tinymlaas_registry.adapters import S3Settings

XML = "application/xml"
NAME = "bucket"


class Request(BaseHTTPRequestHandler):
    """One call of the store; a fault may answer it instead."""

    protocol_version = "HTTP/1.1"
    server: BucketServer  # type: ignore[assignment]

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def answer(self, status: int, body: bytes = b"", kind: str = XML, size: int | None = None) -> None:
        """`size` is the length that is told of."""
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body) if size is None else size)),
            ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"),
            ("ETag", '"e"'),
            *([("Retry-After", "120")] if status == 503 else []),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        """An error as S3 tells it."""
        self.answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        self.server.requests.append((self.command, path))
        if self.server.deaf:
            self.server.ended.wait()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.fault is not None and self.server.fault(self):
            return
        key, objects = path.removeprefix(f"/{NAME}").removeprefix("/"), self.server.objects
        if not key and "location" in query:
            self.answer(200, b"<LocationConstraint></LocationConstraint>")
        elif not key and "list-type" in query:
            entry = (
                "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
            )
            found = "".join(entry.format(name) for name in objects)
            self.answer(200, f"<ListBucketResult><Name>{NAME}</Name>{found}</ListBucketResult>".encode())
        elif not key:
            self.answer(200)
        elif self.command == "PUT":
            objects[key] = body
            self.answer(200)
        elif self.command == "DELETE":
            objects.pop(key, None)
            self.answer(204)
        elif key not in objects:
            self.refuse(404, "NoSuchKey")
        else:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.answer(206 if start else 200, objects[key][start:])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests ask for `requests`."""


Fault = Callable[[Request], bool]


class BucketServer(ThreadingHTTPServer):
    """A bucket in memory. `fault` sees each call first and answers True where it took it."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault | None = None
        self.deaf = False
        """Whether bodies are not taken, and no call is answered."""
        self.ended = threading.Event()
        """Set at the end of the test: what waits for it lets go."""

    def settings(self) -> S3Settings:
        return S3Settings(f"http://127.0.0.1:{self.server_port}", NAME, "tests", "secret")

    def close(self) -> None:
        """No more connections are taken; no effect the second time."""
        self.shutdown()
        self.server_close()


@contextlib.contextmanager
def bucket_running() -> Iterator[BucketServer]:
    """A bucket for as long as the context lasts."""
    server = BucketServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.close()
        thread.join()


def slow_down(request: Request) -> bool:
    """As a store that starts or has too much to do."""
    request.refuse(503, "SlowDown")
    return True


def gateway_page(request: Request) -> bool:
    """As a proxy before a store that is away."""
    request.answer(502, b"<html>Bad Gateway</html>", "text/html")
    return True


def no_answer(request: Request) -> bool:
    """As a process that is killed amid the call."""
    request.close_connection = True
    return True


def silence(request: Request) -> bool:
    """As a process that hangs."""
    request.server.ended.wait()
    return True


def forbid(request: Request) -> bool:
    """As a store whose policy lets us not."""
    request.refuse(403, "AccessDenied")
    return True


def half_a_body(request: Request) -> bool:
    """The connection is cut in the middle of an object."""
    if request.command != "GET" or not request.path.startswith(f"/{NAME}/sha256/"):
        return False
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    whole = request.server.objects[request.path.removeprefix(f"/{NAME}/")][start:]
    request.answer(200, whole[: len(whole) // 2], "application/octet-stream", len(whole))
    request.close_connection = True
    return True
