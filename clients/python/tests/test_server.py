"""Intake and reads against the real server."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tidegate import (
    AsyncClient,
    Client,
    Enqueued,
    Forbidden,
    Invalid,
    Key,
    KeyConflict,
    NewMessage,
    NoSuchMessage,
    Unauthorized,
    Unreachable,
)
from tidegate.steps import Env, Retries

from .conftest import RealServer


def test_a_known_key_is_answered_and_another_payload_under_it_refused(server: RealServer) -> None:
    with Client(server.url) as tide:
        first = tide.enqueue("greet", {"name": "Ada", "n": 9007199254740993}, key="greet-ada", delay=60)
        again = tide.enqueue("greet", {"n": 9007199254740993, "name": "Ada"}, key="greet-ada", priority=1)
        assert (first.result, again.result, again.id) == ("added", "known", first.id)
        assert again.ignored == ("priority",)
        with pytest.raises(KeyConflict) as raised:
            tide.enqueue("greet", {"name": "Ada", "n": 9007199254740992}, key="greet-ada")
        assert raised.value.status == 422 and not raised.value.retryable and raised.value.fix
        assert tide.find("greet", "greet-ada").id == first.id
        unique = {tide.enqueue("greet", 1, key=Key.unique()).id for _ in range(3)}
        assert len(unique) == 3


def test_what_was_accepted_outlives_the_server(server: RealServer) -> None:
    with Client(server.url) as tide:
        sent = tide.enqueue("greet", {"name": "Ada"}, key="greet-ada", headers={"tenant-note": "x"})
        server.end(signal.SIGKILL)
        with pytest.raises(Unreachable):
            Client(server.url, env=Env(Retries(within=0))).get(sent.id)
        # The call begins while nobody listens and ends when somebody does.
        starting = threading.Timer(0.5, server.start)
        starting.start()
        message = tide.get(sent.id, reveal=True)
        starting.join()
        assert message.said["payload"] == {"name": "Ada"}
        assert (message.state, message.kind, message.key, message.is_pending) == ("ready", "greet", "greet-ada", True)
        assert server.end(signal.SIGTERM) == 0
        server.start()


def test_payloads_are_masked_unless_they_are_asked_for(server: RealServer) -> None:
    with Client(server.url) as tide:
        sent = tide.enqueue("greet", {"card": "4111"}, key="k")
        assert tide.get(sent.id).said["payload"] == {"masked": True, "bytes": 15}


@contextmanager
def losing_the_reply(url: str, times: int) -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that hands requests on and drops the first replies whole, after the server has answered."""
    host, port = url.removeprefix("http://").split(":")
    seen: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with closing(client), closing(socket.create_connection((host, int(port)))) as upstream:
                request = client.recv(65_536)
                while b"\r\n\r\n" not in request or len(request.split(b"\r\n\r\n", 1)[1]) < _length(request):
                    request += client.recv(65_536)
                seen.append(request)
                upstream.sendall(request)
                reply = upstream.recv(65_536)
                while b"\r\n\r\n" not in reply or len(reply.split(b"\r\n\r\n", 1)[1]) < _length(reply):
                    reply += upstream.recv(65_536)
                if len(seen) > times:
                    client.sendall(reply)

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", seen
        # accept() would otherwise wait for ever on a closed socket.
        listening.shutdown(socket.SHUT_RDWR)


def _length(text: bytes) -> int:
    head = text.split(b"\r\n\r\n", 1)[0].lower().split(b"\r\n")
    return next((int(line.split(b":")[1]) for line in head if line.startswith(b"content-length:")), 0)


def test_a_lost_reply_stores_nothing_twice(server: RealServer) -> None:
    with losing_the_reply(server.url, times=2) as (proxy, seen):
        with Client(proxy, env=Env(Retries(base=0.01))) as tide:
            sent = tide.enqueue("greet", {"name": "Ada"}, key="greet-ada")
            assert len(seen) == 3, "two replies were lost"
            # The first one stored it, and so the third finds it.
            assert sent.result == "known"
            unique = tide.enqueue("greet", {"name": "Bob"}, key=Key.unique())
    with Client(server.url) as tide:
        assert [message.id for message in tide.messages(queue="greet").messages] == [sent.id, unique.id]


def test_a_wait_ends_with_the_message_or_with_its_time(server: RealServer) -> None:
    with Client(server.url) as tide:
        sent = tide.enqueue("greet", {}, key="k")
        assert tide.wait(sent.id, timeout=0.2).is_pending
        cancelling = threading.Timer(0.3, server.command, ["cancel", sent.id, "--reason", "a test"])
        cancelling.start()
        ended = tide.wait(sent.id, timeout=20)
        cancelling.join()
        assert (ended.state, ended.is_pending, ended.answer) == ("cancelled", False, None)
        flow = tide.flow(sent.id, timeout=20)
        assert (flow.live, flow.completed, [one.state for one in flow.messages]) == (False, False, ["cancelled"])


def test_a_batch_gets_a_verdict_for_each_message(server: RealServer) -> None:
    with Client(server.url) as tide:
        batch = [NewMessage("a", 1, "k"), NewMessage("a", 2, "k"), NewMessage("b", 2, "k"), NewMessage("a", 1, "no such key")]
        added, conflict, other, wrong = tide.enqueue_many(batch)
        assert isinstance(added, Enqueued) and added.result == "added"
        assert isinstance(conflict, KeyConflict)
        assert isinstance(other, Enqueued) and other.id != added.id
        assert isinstance(wrong, Invalid)


def test_pages_follow_one_another_and_leave_nothing_out(server: RealServer) -> None:
    with Client(server.url) as tide:
        sent = [tide.enqueue("greet", number, key=f"k-{number}").id for number in range(7)]
        listed: list[str] = []
        after: str | None = None
        while True:
            page = tide.messages(queue="greet", state="ready", after=after, limit=3)
            listed += [message.id for message in page.messages]
            after = page.next
            if after is None:
                break
        assert listed == sent
        assert tide.dead().messages == tide.parked().messages == ()
        assert page.messages[0].enqueued_at is not None


def test_what_is_not_there_and_what_is_wrong_are_exceptions_of_their_own(server: RealServer) -> None:
    with Client(server.url) as tide:
        with pytest.raises(NoSuchMessage):
            tide.find("greet", "nobody")
        with pytest.raises(Invalid, match="priority"):
            tide.enqueue("greet", {}, key="k", priority=10)
        with pytest.raises(ValueError, match="JSON"):
            tide.enqueue("greet", float("nan"), key="k")


def test_the_awaited_client_says_the_same(server: RealServer) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as tide:
            sent = await asyncio.gather(*[tide.enqueue("greet", {}, key="one") for _ in range(8)])
            assert {one.id for one in sent} == {sent[0].id}
            assert sorted(one.result for one in sent) == ["added"] + ["known"] * 7
            assert (await tide.wait(sent[0].id, timeout=0.1)).is_pending
            with pytest.raises(KeyConflict):
                await tide.enqueue("greet", 1, key="one")

    asyncio.run(main())


def test_a_token_opens_what_its_scopes_name(tmp_path: Path) -> None:
    server = RealServer(tmp_path, "--require-tokens").start()
    try:
        token = server.command("token", "create", "shop", "--scope", "produce:shop.*", "--json")
        with Client(server.url) as nobody, pytest.raises(Unauthorized):
            nobody.enqueue("shop.sell", {}, key="k")
        with Client(server.url, token=json.loads(token)["token"]) as shop:
            assert shop.enqueue("shop.sell", {}, key="k").result == "added"
            with pytest.raises(Forbidden):
                shop.enqueue("bank.pay", {}, key="k")
    finally:
        server.end(signal.SIGKILL)
