"""A payment gateway that misbehaves: it takes effect, and then loses its reply, or answers late. Its ledger is the truth."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Entry:
    """Something that took effect."""

    operation: str
    key: str
    deposit: str
    cents: int


#: Gets the operation, its key and how often that was asked for before; says what goes wrong.
Fault = Callable[[str, str, int], str]


def honest(operation: str, key: str, nth: int) -> str:
    return ""


class Gateway:
    """``recognises_keys``: the same key again takes effect once. Without it every call does, and it can only be asked."""

    def __init__(self, *, recognises_keys: bool, fault: Fault = honest) -> None:
        self.recognises_keys = recognises_keys
        self.fault = fault
        self.ledger: list[Entry] = []
        self.asked: Counter[tuple[str, str]] = Counter()
        self.url = ""
        #: What was said to it beside operations, in order.
        self.told: list[str] = []
        #: One is released for each call that took effect, and each word that was told.
        self.happened = threading.Semaphore(0)
        #: Replies of which the fault is "late" wait for it.
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def operate(self, operation: str, key: str, deposit: str, cents: int) -> tuple[str, Entry | None]:
        """Takes effect; what goes wrong with the reply, and the entry of its ledger."""
        with self._lock:
            nth = self.asked[(operation, key)]
            self.asked[(operation, key)] += 1
            fault = self.fault(operation, key, nth)
            if fault == "busy":
                return fault, None
            known = self.find(operation, key) if self.recognises_keys else None
            entry = known or Entry(operation, key, deposit, cents)
            if known is None:
                self.ledger.append(entry)
        self.happened.release()
        return fault, entry

    def find(self, operation: str, key: str) -> Entry | None:
        """What took effect under a key."""
        return next((entry for entry in self.ledger if (entry.operation, entry.key) == (operation, key)), None)

    def number(self, entry: Entry) -> int:
        """Where it stands in the ledger."""
        return self.ledger.index(entry)

    def of(self, deposit: str, operation: str) -> list[Entry]:
        """What took effect for a deposit."""
        return [entry for entry in self.ledger if (entry.deposit, entry.operation) == (deposit, operation)]

    def wait(self) -> None:
        """Until one more call took effect, or one more word was told."""
        assert self.happened.acquire(timeout=30), f"nothing happened: {self.told} {self.ledger}"


@contextmanager
def running(gateway: Gateway) -> Iterator[Gateway]:
    """Serves it on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            operation = self.path.strip("/")
            if operation == "told":
                gateway.told.append(body.decode())
                gateway.happened.release()
                return self.reply(200, {})
            said = json.loads(body)
            fault, entry = gateway.operate(operation, self.headers["idempotency-key"], said["deposit"], said["cents"])
            if fault == "late":
                gateway.let_go.wait(30)
            if fault == "lost":
                self.close_connection = True
            elif entry is None:
                self.reply(429, {})
            else:
                self.reply(200, {"reference": f"{operation}-{gateway.number(entry)}"})

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            entry = gateway.find(asked["operation"][0], asked["key"][0])
            if entry is None:
                return self.reply(404, {"code": "not_found"})
            self.reply(200, {"reference": f"{entry.operation}-{gateway.number(entry)}"})

        def reply(self, status: int, body: object) -> None:
            text = json.dumps(body).encode()
            try:
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                # Whoever asked is dead, or has given up.
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Whoever asked was killed in the middle of it."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield gateway
    finally:
        gateway.let_go.set()
        server.shutdown()
        server.server_close()
