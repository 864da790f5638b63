"""A proxy that hands requests on, and drops or holds replies after the server has answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import httpx


class Proxy:
    """``lose`` is asked about each reply: its path, and its body."""

    def __init__(self, upstream: str, *, lose: Callable[[str, bytes], bool]) -> None:
        proxy = self
        self.lost = 0
        lock = threading.Lock()
        self._upstream = httpx.Client(base_url=upstream, timeout=60)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def hand_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {"content-type": self.headers.get("content-type", "application/json")}
                try:
                    reply = proxy._upstream.request(self.command, self.path, content=body, headers=headers)
                except httpx.HTTPError:
                    self.close_connection = True
                    return
                lost = lose(self.path, reply.content)
                with lock:
                    proxy.lost += lost
                self.close_connection = lost
                if lost:
                    return
                try:
                    self.send_response(reply.status_code)
                    self.send_header("content-type", reply.headers.get("content-type", ""))
                    self.send_header("content-length", str(len(reply.content)))
                    self.end_headers()
                    self.wfile.write(reply.content)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = hand_on

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._upstream.close()
