from __future__ import annotations

from typing import Any

import pytest

from tidegate import (
    Forbidden,
    Key,
    KeyConflict,
    LeaseLost,
    NewMessage,
    Problem,
    QueueFull,
    StaleKey,
    Unavailable,
    Unreachable,
    api,
    leases,
)
from tidegate.errors import problem
from tidegate.exchange import exchange
from tidegate.leases import Lease
from tidegate.steps import NoReply, Reply, Request

from .scripted import Script, Scripted, refused, said

ADDED = {"id": "msg_1", "result": "added", "state": "ready"}


def test_an_enqueue_without_a_key_is_no_call() -> None:
    with pytest.raises(TypeError, match="key"):
        api.enqueue(Scripted([]).env(), "greet", {})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="key"):
        NewMessage("greet", {})  # type: ignore[call-arg]


def test_an_enqueue_whose_reply_was_lost_is_sent_again_under_the_same_key() -> None:
    server = Scripted([NoReply("reset", left=True), said(ADDED, 202)])
    sent = server.run(api.enqueue(server.env(), "greet", {"name": "Ada"}, key=Key.unique()))
    first, second = server.bodies()
    assert first == second and first["key"].startswith("unique-")
    assert (sent.id, sent.result) == ("msg_1", "added")


def test_two_unique_keys_differ() -> None:
    assert Key.unique() != Key.unique()


def test_a_pause_is_never_shorter_than_the_server_asks_for() -> None:
    full = refused("queue-full", 429, retryable=True, retry_after_s=3)
    server = Scripted([full, said(ADDED, 202)])
    server.run(api.enqueue(server.env(), "greet", None, key="k"))
    assert server.pauses == [3.5]


def test_pauses_grow_until_the_cap_and_end_with_the_time_that_was_given() -> None:
    server = Scripted([NoReply("refused", left=False)] * 20)
    with pytest.raises(Unreachable) as raised:
        server.run(exchange(server.env(within=20.0), Request("GET", "/", repeatable=True)))
    assert server.pauses == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert raised.value.retryable and not raised.value.maybe_done


def test_a_longer_pause_than_is_left_is_the_callers_to_make() -> None:
    server = Scripted([refused("queue-full", 429, retryable=True, retry_after_s=600)])
    with pytest.raises(QueueFull) as raised:
        server.run(api.enqueue(server.env(), "greet", None, key="k"))
    assert (raised.value.retry_after, raised.value.retryable, server.pauses) == (600.0, True, [])


@pytest.mark.parametrize(
    ("left", "sent"),
    [(True, 1), (False, 2)],
)
def test_what_must_not_be_repeated_is_sent_again_only_if_it_never_left(left: bool, sent: int) -> None:
    server = Scripted([NoReply("gone", left=left), said({})])
    try:
        server.run(exchange(server.env(), Request("POST", "/")))
    except Unreachable as error:
        assert error.maybe_done
    assert len(server.requests) == sent


def test_what_left_once_is_not_called_undone_because_the_server_is_gone_by_then() -> None:
    server = Scripted([NoReply("reset", left=True), *[NoReply("refused", left=False)] * 20])
    with pytest.raises(Unreachable) as raised:
        server.run(api.enqueue(server.env(within=5.0), "greet", None, key="k"))
    assert raised.value.maybe_done and len(server.requests) > 1


@pytest.mark.parametrize(
    ("lost", "slug", "status", "maybe_done"),
    [
        (True, "unauthorized", 401, True),
        (True, "conflict", 409, True),
        # Whatever it is refused for was so the first time.
        (True, "key-conflict", 422, False),
        (True, "invalid", 400, False),
        # Nothing of it had left.
        (False, "unauthorized", 401, False),
    ],
)
def test_a_refusal_that_answers_a_repetition_says_that_the_first_try_may_be_done(
    lost: bool, slug: str, status: int, maybe_done: bool
) -> None:
    server = Scripted([NoReply("gone", left=lost), refused(slug, status)])
    with pytest.raises(Problem) as raised:
        server.run(api.enqueue(server.env(), "greet", None, key="k"))
    assert raised.value.maybe_done is maybe_done
    assert ("not known" in str(raised.value)) is maybe_done


#: A gateway's word that it did not get through: behind it, the request may have been carried out.
GATEWAY = Reply(502, {"content-type": "text/html"}, b"<h1>bad gateway</h1>")
LOST = NoReply("gone", left=True)


@pytest.mark.parametrize(
    ("first", "maybe_done"),
    [
        (LOST, True),
        (GATEWAY, True),
        (refused("unavailable", 503, retryable=True), True),
        # Turned away before anything of it was looked at.
        (refused("busy", 503, retryable=True), False),
        (refused("too-many-requests", 429, retryable=True), False),
        (NoReply("refused", left=False), False),
    ],
)
def test_a_try_that_nobody_knows_the_end_of_leaves_a_doubt(first: Script, maybe_done: bool) -> None:
    server = Scripted([first, refused("conflict", 409)])
    with pytest.raises(Problem) as raised:
        server.run(api.enqueue(server.env(), "greet", None, key="k"))
    assert raised.value.maybe_done is maybe_done and raised.value.slug == "conflict"


def test_what_a_server_could_not_carry_through_may_be_done_and_is_no_repetition() -> None:
    for first, maybe_done in ((GATEWAY, True), (refused("busy", 503, retryable=True), False)):
        server = Scripted([first])
        with pytest.raises(Problem) as raised:
            server.run(exchange(server.env(within=0.0), Request("POST", "/")))
        assert raised.value.maybe_done is maybe_done and "not known" not in str(raised.value)


def verdict(slug: str, status: int) -> dict[str, Any]:
    return {"status": status, "problem": {"type": f"/problems/{slug}", "status": status, "detail": "so it is"}}


def lease() -> Lease:
    message = {"id": "msg_1", "queue": "q", "kind": "k", "version": 1, "key": "a", "payload": None}
    return Lease.read({"message": message, "token": "1.ab", "counters": {"attempt": 1}, "reconciling": False, "suspect": False})


@pytest.mark.parametrize(
    ("tries", "slug", "status", "maybe_done"),
    [
        ([LOST], "lease-lost", 409, True),
        ([LOST], "conflict", 409, True),
        ([LOST], "unauthorized", 401, True),
        ([GATEWAY], "lease-lost", 409, True),
        # The store was away, and what it was doing may have been stored.
        ([said({"results": [verdict("unavailable", 503)]})], "lease-lost", 409, True),
        # Whatever it is refused for was so the first time.
        ([LOST], "invalid", 400, False),
        ([LOST], "not-found", 404, False),
        ([LOST], "key-conflict", 422, False),
        # Nothing of it had left, or it is the first try.
        ([NoReply("refused", left=False)], "lease-lost", 409, False),
        ([], "lease-lost", 409, False),
    ],
)
def test_a_verdict_that_answers_a_repetition_says_that_the_first_try_may_be_done(
    tries: list[Script], slug: str, status: int, maybe_done: bool
) -> None:
    server = Scripted([*tries, said({"results": [verdict(slug, status)]})])
    with pytest.raises(Problem) as raised:
        server.run(leases.settle(server.env(), lease(), {"outcome": "completed", "result": 1}, within=30.0))
    assert (raised.value.slug, raised.value.maybe_done) == (slug, maybe_done)
    assert str(raised.value).count("not known") == maybe_done
    assert len(server.requests) == len(tries) + 1


def test_every_refused_item_of_a_repeated_batch_says_so_and_no_other() -> None:
    done = {"status": 200, "leased_until": "2026-01-01T00:00:00.000Z"}
    lost = said({"results": [verdict("lease-lost", 409), done, verdict("not-found", 404)]})
    server = Scripted([LOST, lost])
    first, second, third = server.run(leases.extend(server.env(), [lease()] * 3, 30, within=30.0))
    assert isinstance(first, LeaseLost) and first.maybe_done
    assert second is False
    assert isinstance(third, Problem) and not third.maybe_done
    full = {"results": [verdict("queue-full", 429), {"status": 202, **ADDED}]}
    server = Scripted([LOST, said(full)])
    messages = [NewMessage("a", 1, "k"), NewMessage("b", 2, "k")]
    refusal, stored = server.run(api.enqueue_many(server.env(), messages))
    assert isinstance(refusal, Problem) and refusal.maybe_done and not isinstance(stored, Problem)


def test_a_settlement_whose_store_stays_away_is_given_up_in_time_and_may_be_stored() -> None:
    away = said({"results": [verdict("unavailable", 503)]})
    server = Scripted([away] * 20)
    with pytest.raises(Unavailable) as raised:
        server.run(leases.settle(server.env(), lease(), {"outcome": "released"}, within=5.0))
    assert raised.value.maybe_done and server.pauses == [0.5, 1.0, 2.0]


def test_a_read_changed_nothing_however_often_it_was_tried() -> None:
    server = Scripted([NoReply("gone", left=True), refused("unauthorized", 401)])
    with pytest.raises(Problem) as raised:
        server.run(api.get(server.env(), "msg_1"))
    assert not raised.value.maybe_done


def test_what_cannot_succeed_is_not_tried_again() -> None:
    server = Scripted([refused("key-conflict", 422, fix="use another key")])
    with pytest.raises(KeyConflict, match="hint: use another key"):
        server.run(api.enqueue(server.env(), "greet", None, key="k"))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("slug", "status", "expected"),
    [
        ("stale-key", 409, StaleKey),
        ("forbidden", 403, Forbidden),
        ("busy", 503, Unavailable),
        ("unavailable", 503, Unavailable),
        ("something-new", 418, Problem),
    ],
)
def test_a_problem_is_the_exception_of_its_type_and_else_of_its_status(slug: str, status: int, expected: type[Problem]) -> None:
    assert type(problem(status, {"type": f"/problems/{slug}"})) is expected


def test_a_batch_gives_a_verdict_for_each() -> None:
    conflict: dict[str, Any] = {"type": "/problems/key-conflict", "title": "", "status": 422}
    server = Scripted([said({"results": [{"status": 202, **ADDED}, {"status": 422, "problem": conflict}]})])
    steps = api.enqueue_many(server.env(), [NewMessage("a", 1, "k"), NewMessage("b", 2, "k", queue="q")])
    stored, refusal = server.run(steps)
    assert not isinstance(stored, Problem) and stored.id == "msg_1"
    assert isinstance(refusal, KeyConflict)
    assert [one["queue"] for one in server.bodies()[0]["messages"]] == ["a", "q"]


def test_a_wait_asks_again_until_the_message_ended_and_no_longer_than_it_was_told() -> None:
    def message(state: str) -> dict[str, Any]:
        return {"id": "m", "queue": "q", "kind": "k", "key": "k", "state": state, "attempt": 1, "flow": "m"}

    server = Scripted([said(message("ready")), said({**message("completed"), "answer": {"result": 7}})])
    ended = server.run(api.wait(server.env(), "m", timeout=45))
    assert ended.answer is not None and ended.answer.result == 7 and not ended.is_pending
    assert [request.query for request in server.requests] == [{"wait": "20000ms"}] * 2
    server = Scripted([said(message("ready"))])
    assert server.run(api.wait(server.env(), "m", timeout=1.5)).is_pending
    assert server.requests[0].query == {"wait": "1500ms"}
