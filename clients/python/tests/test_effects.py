"""What an effect asks of the server and of the remote, and how a run is reported: against a list of answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Union

import httpx
import pytest

from tidegate import (
    AtMostOnce,
    EffectPolicy,
    Fail,
    Keyed,
    LeaseLost,
    Lookup,
    Natural,
    NoSuchMessage,
    NotDone,
    NotFound,
    Rejected,
    Retry,
    RunEnded,
    Snooze,
    Unknown,
    Unreachable,
    http,
)
from tidegate.attempt import Raised, Ran, Returned, Undecodable, settlement
from tidegate.drivers import Driver, Server
from tidegate.effects import Effect, Run, make
from tidegate.keepalive import Held, Keepalive, Stopped
from tidegate.leases import Claim, Lease, claim, settle
from tidegate.steps import NoReply, Reply, Request

from .scripted import Script, Scripted, refused, said

LEASED = {
    "message": {"id": "msg_1", "queue": "capture", "kind": "capture", "version": 1, "key": "dep-1", "payload": {"cents": 5}},
    "token": "1.aa",
    "counters": {"attempt": 1},
    "reconciling": False,
    "suspect": False,
}
SEND = {"do": "send", "key": "k1", "seq": 0, "within_ms": 30_000}
LOOK_UP = {"do": "look_up", "key": "k1", "seq": 0, "within_ms": 30_000}
VALUE = {"do": "value", "value": "ch_1"}


def raising(error: BaseException) -> Callable[[str], Any]:
    def call(key: str) -> Any:
        raise error

    return call


class Making:
    """One run that makes one effect after another."""

    def __init__(self, *replies: Script) -> None:
        self.server = Scripted(list(replies))
        lease = Lease.read(LEASED)
        self.run = Run(lease, Held(lease, 30.0, self.server.now))
        self.sent: list[str] = []

    def make(self, send: Any = "ch_1", look_up: Any = None, policy: EffectPolicy = Keyed(60), **more: Any) -> Any:
        def call(key: str) -> Any:
            self.sent.append(key)
            return send(key) if callable(send) else send

        effect = Effect(more.pop("name", "charge"), policy, call, look_up, **more)
        return self.server.run(make(self.server.env(), self.run, effect))

    def ended(self, ran: Ran = Raised(RunEnded())) -> dict[str, Any] | None:
        return settlement(self.run, ran)


def test_an_effect_is_reached_sent_under_its_key_and_answered() -> None:
    making = Making(said(SEND), said(VALUE))
    assert making.make(look_up=lambda key: key, policy=Keyed(60, quarantine=5), item="a", send_within=10) == "ch_1"
    assert making.sent == ["k1"]
    reached, answered = making.server.bodies()
    policy = {"policy": "keyed", "window_ms": 60_000, "or_lookup": True, "quarantine_ms": 5_000, "send_within_ms": 10_000}
    assert reached == {"token": "1.aa", "effect": "charge", "item": "a", **policy}
    answer = {"answer": "confirmed", "value": "ch_1"}
    assert answered == {"token": "1.aa", "effect": "charge", "item": "a", "seq": 0, **answer}
    assert [request.path for request in making.server.requests] == [
        "/v1/messages/msg_1/effects",
        "/v1/messages/msg_1/effects/answer",
    ]


def test_what_is_confirmed_is_not_sent_again() -> None:
    making = Making(said(VALUE))
    assert (making.make(), making.sent) == ("ch_1", [])


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (Rejected("declined", "no funds"), {"answer": "rejected", "code": "declined", "detail": "no funds"}),
        (NotDone("429", after=5), {"answer": "not_done", "why": "429", "after_ms": 5_000}),
        (NotDone("refused"), {"answer": "not_done", "why": "refused"}),
        (Unknown("timed out"), {"answer": "unknown", "why": "timed out"}),
        (httpx.ReadTimeout("slow"), {"answer": "unknown", "why": "ReadTimeout: slow"}),
        (httpx.ConnectError("no"), {"answer": "unknown", "why": "ConnectError: no"}),
        (KeyError("id"), {"answer": "unknown", "why": "KeyError: 'id'"}),
        # A send cannot say that it did not happen.
        (NotFound("nothing"), {"answer": "unknown", "why": "NotFound: nothing"}),
    ],
)
def test_in_doubt_an_answer_is_unknown(error: Exception, answer: dict[str, Any]) -> None:
    stop = {"do": "stop", "settle": {"outcome": "unknown", "code": "unknown", "detail": "as the server says"}}
    making = Making(said(SEND), said(stop))
    with pytest.raises(RunEnded):
        making.make(raising(error))
    assert making.server.bodies()[1] == {"token": "1.aa", "effect": "charge", "seq": 0, **answer}
    # What the handler makes of it changes nothing.
    assert making.ended(Returned("all is well")) == stop["settle"]
    assert making.ended(Raised(Fail("never"))) == stop["settle"]


def test_a_look_up_that_finds_nothing_lets_it_be_sent() -> None:
    making = Making(said(LOOK_UP), said({"do": "reach"}), said({**SEND, "seq": 1}), said(VALUE))
    assert making.make(look_up=raising(NotFound()), policy=Lookup()) == "ch_1"
    bodies = making.server.bodies()
    assert [body.get("answer") for body in bodies] == [None, "not_found", None, "confirmed"]
    assert (bodies[3]["seq"], making.sent) == (1, ["k1"])


def test_a_look_up_that_is_not_answered_sends_nothing() -> None:
    stop = {"do": "stop", "settle": {"outcome": "unknown", "code": "lookup", "detail": "503"}}
    making = Making(said(LOOK_UP), said(stop))
    with pytest.raises(RunEnded):
        making.make(look_up=raising(NotDone("503")), policy=Lookup())
    assert (making.server.bodies()[1]["answer"], making.sent) == ("unknown", [])


def test_a_rejection_fails_the_message_unless_the_handler_goes_on_with_it() -> None:
    making = Making(said({"do": "rejected", "code": "declined", "detail": "no funds"}))
    with pytest.raises(Rejected) as raised:
        making.make()
    assert making.ended(Raised(raised.value)) == {"outcome": "permanent", "code": "declined", "detail": "no funds"}
    assert making.ended(Returned("otherwise")) == {"outcome": "completed", "result": "otherwise"}


def test_a_reach_whose_answer_was_lost_is_repeated_as_one_that_sent_nothing() -> None:
    making = Making(NoReply("reset", left=True), refused("unavailable", 503, retryable=True), said(SEND), said(VALUE))
    assert making.make() == "ch_1"
    assert [body.get("unsent") for body in making.server.bodies()] == [None, True, True, None]
    assert making.sent == ["k1"]


STOP = {"do": "stop", "settle": {"outcome": "retryable", "code": "cancel_requested", "detail": "called off"}}


@pytest.mark.parametrize("policy", [AtMostOnce(), Keyed(60), Lookup()])
def test_a_repeated_reach_that_is_told_to_stop_says_that_nothing_was_sent(policy: EffectPolicy) -> None:
    making = Making(NoReply("reset", left=True), said(STOP))
    with pytest.raises(RunEnded):
        making.make(policy=policy, look_up=str if isinstance(policy, Lookup) else None)
    assert making.sent == []
    assert making.ended() == {**STOP["settle"], "journal": [{"write": "not_sent", "effect": "charge"}]}


def test_only_a_reach_without_an_answer_is_called_unsent() -> None:
    # Told to stop at once, it left no intent.
    making = Making(said(STOP))
    with pytest.raises(RunEnded):
        making.make(policy=AtMostOnce())
    assert making.ended() == STOP["settle"]
    # Sent after all: what came of it stands in the journal already.
    making = Making(NoReply("reset", left=True), said(SEND), said(STOP))
    with pytest.raises(RunEnded):
        making.make(raising(TimeoutError()), policy=AtMostOnce())
    assert making.ended() == STOP["settle"]
    # What is natural has no intent.
    making = Making(NoReply("reset", left=True), said(STOP))
    with pytest.raises(RunEnded):
        making.make(policy=Natural())
    assert making.ended() == STOP["settle"]


def test_an_answer_that_cannot_be_told_rides_the_settlement() -> None:
    making = Making(said(SEND), *[NoReply("gone", left=True)] * 30)
    with pytest.raises(RunEnded):
        making.make()
    ended = making.ended()
    assert ended is not None and ended["outcome"] == "retryable"
    write = {"write": "answer", "effect": "charge", "seq": 0, "answer": "confirmed", "value": "ch_1"}
    assert ended["journal"] == [write]
    # Not for longer than the lease holds.
    assert making.server.now < 130.0


def test_a_reach_that_stays_without_an_answer_sent_nothing_and_says_so() -> None:
    making = Making(*[NoReply("gone", left=True)] * 30)
    with pytest.raises(RunEnded):
        making.make()
    ended = making.ended()
    assert ended is not None and (ended["outcome"], making.sent) == ("not_done", [])
    assert ended["journal"] == [{"write": "not_sent", "effect": "charge"}]


def test_a_run_that_is_cancelled_says_what_it_knows() -> None:
    def cancelled(request: Request) -> Reply:
        raise asyncio.CancelledError

    making = Making(cancelled)
    with pytest.raises(asyncio.CancelledError):
        making.make()
    making.run.held.stop(Stopped.DRAINED)
    journal = [{"write": "not_sent", "effect": "charge"}]
    assert making.ended(Raised(asyncio.CancelledError())) == {"outcome": "released", "journal": journal}
    # In the middle of a send nobody knows, and nothing is said.
    making = Making(said(SEND))
    with pytest.raises(asyncio.CancelledError):
        making.make(raising(asyncio.CancelledError()))
    making.run.held.stop(Stopped.DRAINED)
    assert making.ended(Raised(asyncio.CancelledError())) == {"outcome": "released"}


def test_what_takes_too_long_before_it_leaves_does_not_leave() -> None:
    def slow(request: Request) -> Reply:
        making.server.now += 11.0
        return said({**SEND, "within_ms": 10_000})

    stop = {"do": "stop", "settle": {"outcome": "not_done", "code": "not_done", "detail": "late"}}
    making = Making(slow, said(stop))
    with pytest.raises(RunEnded):
        making.make(send_within=10)
    assert (making.server.bodies()[1]["answer"], making.sent) == ("not_done", [])


def test_a_lease_that_lapsed_while_the_intent_was_written_sends_nothing() -> None:
    def slow(request: Request) -> Reply:
        making.server.now += 30.0
        return said({**SEND, "within_ms": 60_000})

    making = Making(slow, refused("lease-lost", 409))
    with pytest.raises(RunEnded):
        making.make(send_within=60)
    assert (making.sent, making.ended(Returned(1))) == ([], None)


@pytest.mark.parametrize("gone", [refused("lease-lost", 409), refused("not-found", 404)])
def test_a_run_whose_lease_is_lost_settles_nothing_and_makes_no_effect(gone: Reply) -> None:
    making = Making(gone)
    with pytest.raises(RunEnded):
        making.make()
    with pytest.raises(RunEnded):
        making.make(name="another")
    assert (len(making.server.requests), making.ended(Returned(1))) == (1, None)


@pytest.mark.parametrize(
    ("problem", "outcome", "code"),
    [
        (refused("conflict", 409), "retryable", "journal"),
        (refused("invalid", 400), "retryable", "effect"),
        (refused("forbidden", 403), "retryable", "forbidden"),
    ],
)
def test_a_reach_that_is_refused_ends_the_run(problem: Reply, outcome: str, code: str) -> None:
    making = Making(problem)
    with pytest.raises(RunEnded):
        making.make()
    ended = making.ended()
    assert ended is not None and (ended["outcome"], ended["code"]) == (outcome, code)


def test_an_effect_is_used_once_in_a_run_and_never_beside_another() -> None:
    making = Making(said(VALUE), said(VALUE))
    making.make(item="a")
    making.make(item="b")
    with pytest.raises(RunEnded):
        making.make(item="a")
    ended = making.ended()
    assert ended is not None and (ended["outcome"], ended["code"]) == ("retryable", "effect")
    assert "twice" in ended["detail"]
    making = Making(said(SEND))
    with pytest.raises(RunEnded):
        making.make(lambda key: making.make(name="inner"))
    ended = making.ended()
    assert ended is not None and "under way" in ended["detail"]


def test_of_threads_that_reach_an_effect_at_the_same_time_one_passes() -> None:
    class Slow(set[tuple[str, Union[str, None]]]):
        # Whoever looked lets everybody else look before it goes on.
        def __contains__(self, item: object) -> bool:
            is_there = super().__contains__(item)
            time.sleep(0.02)
            return is_there

    making = Making()
    making.run._reached = Slow()
    effect = Effect("charge", Keyed(60), raising(AssertionError("it is only begun")))
    at_once = threading.Barrier(8)
    passed: list[int] = []

    def begin(number: int) -> None:
        at_once.wait(30)
        try:
            making.run.begin(effect)
        except RunEnded:
            return
        passed.append(number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(passed) == 1


def test_a_confirmed_value_that_json_cannot_say_waits_for_a_person() -> None:
    making = Making(said(SEND))
    with pytest.raises(RunEnded):
        making.make(lambda key: object())
    ended = making.ended()
    assert ended is not None and (ended["outcome"], ended["reason"]) == ("park", "journal_decode")


def test_what_is_harmless_to_repeat_has_no_intent_to_take_back() -> None:
    making = Making(said({"do": "send", "key": "k1", "within_ms": 30_000}), said({"do": "value", "value": 7}))
    assert making.make(7, policy=Natural(), request={"a": 1}) == 7
    reached, answered = making.server.bodies()
    assert reached == {
        "token": "1.aa",
        "effect": "charge",
        "policy": "natural",
        "request": {"a": 1},
        "send_within_ms": 30_000,
    }
    natural = {"policy": "natural", "request": {"a": 1}, "answer": "confirmed", "value": 7}
    assert answered == {"token": "1.aa", "effect": "charge", **natural}
    making = Making(*[NoReply("gone", left=True)] * 30)
    with pytest.raises(RunEnded):
        making.make(policy=Natural())
    assert making.run.journal == []


def test_an_effect_that_contradicts_itself_is_an_error_before_anything_is_asked() -> None:
    making = Making()
    with pytest.raises(ValueError, match="look_up="):
        making.make(policy=Lookup())
    with pytest.raises(ValueError, match="never looked up"):
        making.make(policy=AtMostOnce(), look_up=lambda key: 1)
    with pytest.raises(TypeError, match="JSON"):
        making.make(request=object())
    assert making.ended(Returned(1)) == {"outcome": "completed", "result": 1}


@pytest.mark.parametrize(
    ("stopped", "ran", "expected"),
    [
        (None, Returned({"a": [1]}), {"outcome": "completed", "result": {"a": [1]}}),
        (None, Raised(Fail("declined", "no")), {"outcome": "permanent", "code": "declined", "detail": "no"}),
        (None, Raised(Retry("busy", after=2)), {"outcome": "retryable", "code": "busy", "detail": "", "after_ms": 2_000}),
        (None, Raised(Snooze(60)), {"outcome": "snooze", "after_ms": 60_000}),
        (None, Raised(OSError("disk")), {"outcome": "retryable", "code": "error", "detail": "OSError: disk"}),
        (None, Raised(SystemExit(1)), {"outcome": "retryable", "code": "error", "detail": "SystemExit: 1"}),
        (None, Undecodable(KeyError("c")), {"outcome": "undecodable", "code": "decode", "detail": "KeyError: 'c'"}),
        (Stopped.DRAINED, Raised(RunEnded()), {"outcome": "released"}),
        (Stopped.DRAINED, Returned(1), {"outcome": "completed", "result": 1}),
        (Stopped.LEASE_LOST, Returned(1), None),
    ],
)
def test_what_a_handler_returns_or_raises_is_what_is_settled(stopped: Stopped | None, ran: Ran, expected: Any) -> None:
    making = Making()
    if stopped is not None:
        making.run.held.stop(stopped)
    assert making.ended(ran) == expected


@pytest.mark.parametrize(("stopped", "code"), [(Stopped.TIMED_OUT, "timeout"), (Stopped.OUT_OF_TIME, "lease")])
def test_a_run_that_was_stopped_says_why(stopped: Stopped, code: str) -> None:
    making = Making()
    making.run.held.stop(stopped)
    ended = making.ended()
    assert ended is not None and (ended["outcome"], ended["code"]) == ("retryable", code)


def test_a_result_that_json_cannot_say_is_refused() -> None:
    ended = Making().ended(Returned(float("nan")))
    assert ended is not None and (ended["outcome"], ended["code"]) == ("refused", "result")


def test_losing_the_lease_overrides_every_other_reason_to_stop() -> None:
    held = Making().run.held
    told: list[Any] = []
    held.on_stop(lambda: told.append(held.stopped))
    for reason in (Stopped.DRAINED, Stopped.TIMED_OUT, Stopped.LEASE_LOST, Stopped.DRAINED):
        held.stop(reason)
    held.on_stop(lambda: told.append("late"))
    assert told == [Stopped.DRAINED, Stopped.LEASE_LOST, "late"]


@pytest.mark.parametrize(
    ("verdict", "at", "stopped"),
    [
        (True, 115.0, None),
        (LeaseLost(409, {"type": "/problems/lease-lost"}), 115.0, Stopped.LEASE_LOST),
        (NoSuchMessage(404, {}), 115.0, Stopped.LEASE_LOST),
        (Unreachable("no", maybe_done=True), 115.0, None),
        # Before it lapses, and so before anybody else can have it.
        (Unreachable("no", maybe_done=True), 124.0, Stopped.OUT_OF_TIME),
    ],
)
def test_a_lease_is_extended_or_its_run_stopped_before_it_lapses(verdict: Any, at: float, stopped: Stopped | None) -> None:
    server = Scripted([])

    class Answers(Driver):
        def run(self, steps: Any) -> Any:
            if isinstance(verdict, Unreachable):
                raise verdict
            return [verdict]

    keepalive = Keepalive(server.env(), Answers(Server("http://127.0.0.1:1")), 30.0)
    held = keepalive.hold(Lease.read(LEASED), server.now)
    keepalive.tick()
    assert (held.lapses_at, held.stopped) == (130.0, None), "it is young"
    server.now = at
    keepalive.tick()
    assert held.stopped is stopped
    assert (held.lapses_at, held.cancel_requested) == ((145.0, True) if verdict is True else (130.0, False))
    keepalive.release(held)
    assert keepalive.all() == []


def test_a_claim_is_repeated_under_its_nonce_and_not_for_longer_than_half_its_lease() -> None:
    ask = Claim("w", "capture", 2, {"capture": 1}, "00ff", 30.0, wait=10.0)
    server = Scripted([NoReply("reset", left=True), refused("busy", 503, retryable=True, retry_after_s=1), said({"leases": [LEASED]})])
    (lease,) = server.run(claim(server.env(), ask))
    assert (lease.message.payload, lease.token, "1.aa" in repr(lease)) == ({"cents": 5}, "1.aa", False)
    assert [body["nonce"] for body in server.bodies()] == ["00ff"] * 3
    assert (server.requests[0].patience, server.bodies()[0]["wait_ms"], server.bodies()[0]["queues"]) == (10.0, 10_000, {"capture": 2})
    server = Scripted([NoReply("refused", left=False)] * 30)
    with pytest.raises(Exception, match="refused"):
        server.run(claim(server.env(within=300.0), ask))
    assert server.now < 115.0


def test_a_settlement_is_repeated_as_it_was_until_it_is_answered() -> None:
    busy = said({"results": [{"status": 503, "problem": {"type": "/problems/busy", "title": "", "status": 503}}]})
    server = Scripted([NoReply("reset", left=True), busy, said({"results": [{"status": 200, "state": "completed"}]})])
    lease = Lease.read(LEASED)
    assert server.run(settle(server.env(), lease, {"outcome": "completed", "result": 1}, within=30.0)) == "completed"
    first, second, third = server.bodies()
    assert first == second == third
    assert first == {"settlements": [{"id": "msg_1", "token": "1.aa", "outcome": "completed", "result": 1}]}


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (402, {}, Rejected),
        (404, {}, Rejected),
        (401, {}, NotDone),
        (429, {"retry-after": "3"}, NotDone),
        (503, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, NotDone),
        (503, {}, Unknown),
        (503, {"retry-after": "soon"}, Unknown),
        (500, {}, Unknown),
        (409, {}, Unknown),
        (499, {}, Unknown),
        (302, {}, Unknown),
    ],
)
def test_a_status_is_never_taken_for_more_than_it_says(status: int, headers: dict[str, str], expected: type[Exception]) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(status, headers=headers))
    with httpx.Client(transport=transport) as client, pytest.raises(Exception) as raised:
        http.send(client, "POST", "http://gateway/charges")
    assert type(raised.value) is expected
    if headers.get("retry-after") == "3":
        assert isinstance(raised.value, NotDone) and raised.value.after == 3.0


@pytest.mark.parametrize(("error", "expected"), [(httpx.ConnectError("x"), NotDone), (httpx.ReadTimeout("x"), Unknown)])
def test_only_a_connection_that_was_never_made_certainly_sent_nothing(error: Exception, expected: type[Exception]) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with httpx.Client(transport=httpx.MockTransport(fail)) as client, pytest.raises(expected):
        http.send(client, "POST", "http://gateway/charges")
