"""A small object store over HTTP on loopback: folder listings, HEAD and ranges with ETags; it can stall and miscount."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store:
    """Objects by path (``/a.jsonl``). ``gets`` counts the whole bodies sent for each; ``asked`` lists what GET requests named.

    An object named with a query answers to that query alone; others are served whatever query is asked.
    With ``fails`` every answer is 503. ``versions`` is a header to send with every object instead of its ETag.
    ``half_sent`` is set once a body of a path in ``stall`` is half sent; the rest follows when ``go_on`` is set.
    """

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.gets: Counter[str] = Counter()
        self.asked: list[str] = []
        self.heads: Counter[str] = Counter()
        self.headed = threading.Condition()
        self.stall: set[str] = set()
        self.half_sent = threading.Event()
        self.go_on = threading.Event()
        self.fails = False
        self.versions: tuple[str, str] | None = None
        self.uri = ""

    def wait_for_heads(self, path: str, count: int) -> None:
        with self.headed:
            assert self.headed.wait_for(lambda: self.heads[path] >= count, timeout=60)


@contextmanager
def serve(objects: dict[str, bytes]) -> Iterator[Store]:
    """Serve ``objects`` until the context ends."""
    store = Store(objects)

    class Handler(_Handler):
        pass

    Handler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield store
    finally:
        store.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _name(self) -> str:
        return self.path if self.path in self.store.objects else self.path.partition("?")[0]

    def do_HEAD(self) -> None:
        self.path = self._name()
        with self.store.headed:
            self.store.heads[self.path] += 1
            self.store.headed.notify_all()
        self._start(self.store.objects.get(self.path))

    def do_GET(self) -> None:
        self.store.asked.append(self.path)
        self.path = self._name()
        store, body = self.store, self.store.objects.get(self.path)
        if body is None and self.path.endswith("/"):
            names = sorted(path for path in store.objects if path.startswith(self.path))
            listing = "".join(f'<a href="{path}">x</a>' for path in names).encode()
            self._start(listing or None, html=True)
            self.wfile.write(listing)
            return
        self._start(body)
        if body is None:
            return
        store.gets[self.path] += 1
        half = len(body) // 2 if self.path in store.stall else len(body)
        self.wfile.write(body[:half])
        if half < len(body):
            self.wfile.flush()
            store.half_sent.set()
            store.go_on.wait(60)
            try:
                self.wfile.write(body[half:])
            except OSError:  # the reader was killed
                self.close_connection = True

    def _start(self, body: bytes | None, *, html: bool = False) -> None:
        self.send_response(503 if self.store.fails else 200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        if html:
            self.send_header("Content-Type", "text/html")
        elif body is not None:
            header, value = self.store.versions or ("ETag", f'"{hashlib.md5(body).hexdigest()}"')
            self.send_header(header, value)
        self.end_headers()
