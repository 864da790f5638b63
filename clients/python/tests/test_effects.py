"""What an effect does with what the server says, what the remote says, and what nobody says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidegate import AttemptEnded, Confirmed, Context, EffectKey, NotDone, NotFound, Rejected, Rejection, Unknown
from tidegate.attempt import CutOff, Raised, Returned, Settled, judge, settle
from tidegate.keepalive import Stop, extend
from tidegate.steps import NoReply, Request

from .scripted import Script, Scripted, refused, said

SEND = said({"do": "send", "effect_key": "5d41", "ticket": "t1", "send_within_ms": 20_000})
LOOK_UP = said({"do": "look_up", "effect_key": "5d41", "ticket": "t2", "send_within_ms": 20_000})
GO_ON = said({"do": "go_on"})
UNKNOWN = {"type": "unknown", "code": "unknown", "detail": "?"}
STOP = said({"do": "stop", "outcome": UNKNOWN})


class Desk:
    """An attempt at a scripted server, and the sends that left."""

    def __init__(self, *replies: Script, answer: Any = Confirmed("ch_1")) -> None:
        self.server = Scripted(list(replies))
        self.attempt = self.server.attempt()
        self.context = Context(self.attempt)
        self.sent: list[str] = []
        self.answer = answer

    def send(self, key: EffectKey) -> Any:
        self.sent.append(key)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def capture(self, find: Any = None) -> Any:
        effect = self.context.effect("capture").keyed(60)
        return (effect.or_lookup(10, find) if find else effect).call(self.send)

    def outcome(self) -> Any:
        return judge(self.attempt, Returned("done"))


def test_the_send_gets_the_servers_key_and_its_value_is_what_a_replay_would_give() -> None:
    desk = Desk(SEND, GO_ON, answer=Confirmed(("ch_1", 5)))
    assert desk.capture() == ["ch_1", 5]
    assert desk.sent == ["5d41"]
    reach, answer = desk.server.bodies()
    assert (reach["policy"], reach["window_ms"], reach["or_lookup"], reach["token"]) == ("keyed", 60_000, False, "1-ab")
    assert answer == {"token": "1-ab", "ticket": "t1", "answer": {"type": "confirmed", "value": ["ch_1", 5]}}
    assert desk.outcome() == {"type": "completed", "result": "done"}


def test_what_happened_before_is_replayed_and_not_sent() -> None:
    desk = Desk(said({"do": "replay", "value": "ch_0"}))
    assert desk.capture() == "ch_0"
    assert desk.sent == []


def test_a_stop_is_settled_word_for_word_whatever_the_handler_makes_of_it() -> None:
    park = {"type": "park", "reason": "outcome_unknown", "code": "outcome_unknown", "detail": "a person has to look"}
    desk = Desk(said({"do": "stop", "outcome": park}))
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.outcome() == park
    assert judge(desk.attempt, Raised(ValueError("permanent, honestly"))) == park
    with pytest.raises(AttemptEnded):
        desk.context.effect("another").natural().call(desk.send)
    assert desk.sent == [] and len(desk.server.requests) == 1


def test_an_ended_attempt_is_not_caught_by_a_broad_except() -> None:
    assert not issubclass(AttemptEnded, Exception)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Rejected("declined", "no funds"), {"type": "rejected", "code": "declined", "detail": "no funds"}),
        (NotDone("refused", 1.5), {"type": "not_done", "why": "refused", "after_ms": 1500}),
        (Unknown("reset"), {"type": "unknown", "why": "reset"}),
        (ValueError("no reference"), {"type": "unknown", "why": "ValueError: no reference"}),
        (ConnectionRefusedError("x"), {"type": "unknown", "why": "ConnectionRefusedError: x"}),
        (None, {"type": "unknown", "why": "send returned a NoneType, which is no answer of a send"}),
        (NotFound(), {"type": "unknown", "why": "send returned a NotFound, which is no answer of a send"}),
    ],
)
def test_nothing_but_an_answer_is_taken_for_one(answer: Any, told: dict[str, Any]) -> None:
    desk = Desk(SEND, STOP, answer=answer)
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.server.bodies()[1]["answer"] == told
    assert desk.outcome() == UNKNOWN


def test_a_rejection_is_permanent_unless_the_handler_does_something_else() -> None:
    no = said({"do": "rejected", "code": "declined", "detail": "no funds"})
    desk = Desk(SEND, no, answer=Rejected("declined", "no funds"))
    with pytest.raises(Rejection) as raised:
        desk.capture()
    assert judge(desk.attempt, Raised(raised.value)) == {"type": "permanent", "code": "declined", "detail": "no funds"}
    assert desk.outcome() == {"type": "completed", "result": "done"}


def test_a_reach_without_a_reply_is_repeated_as_such_and_sends_once() -> None:
    desk = Desk(NoReply("reset", left=True), refused("unavailable", 503, retryable=True), SEND, GO_ON)
    desk.capture()
    first, second, third, _ = desk.server.bodies()
    assert "repeat" not in first and second["repeat"] is third["repeat"] is True
    assert {**second, "repeat": 0} == {**first, "repeat": 0}
    assert desk.sent == ["5d41"]


def test_a_reach_that_stays_without_a_reply_sends_nothing_and_says_so() -> None:
    desk = Desk(*[NoReply("reset", left=True)] * 30)
    with pytest.raises(AttemptEnded):
        desk.capture()
    outcome = desk.outcome()
    assert (outcome["type"], outcome["name"], outcome["item"], desk.sent) == ("not_sent", "capture", None, [])


def test_an_intent_that_took_too_long_is_not_sent() -> None:
    def late(_: Request) -> Any:
        desk.server.now += 25.0
        return SEND

    desk = Desk(late, STOP)
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.sent == []
    assert desk.server.bodies()[1]["answer"]["type"] == "not_done"


def test_an_answer_that_cannot_be_delivered_rides_the_settlement() -> None:
    desk = Desk(SEND, *[NoReply("reset", left=True)] * 12)
    assert desk.capture() == "ch_1"
    assert {body["answer"]["value"] for body in desk.server.bodies()[1:]} == {"ch_1"}
    desk.server.replies = [said({"results": [{"status": 200, "state": "completed"}]})]
    desk.attempt.held.lapses_at = desk.server.now + 30.0
    outcome = desk.outcome()
    assert outcome == {"type": "completed", "result": "done"}
    assert desk.server.run(settle(desk.attempt, outcome)) == Settled("completed")
    settlement = desk.server.bodies()[-1]["settlements"][0]
    assert settlement["answers"] == [{"ticket": "t1", "answer": {"type": "confirmed", "value": "ch_1"}}]


def test_nothing_begins_before_what_was_answered_is_written_down() -> None:
    desk = Desk(SEND, *[NoReply("reset", left=True)] * 12)
    desk.capture()
    desk.server.replies = [NoReply("reset", left=True)] * 12
    desk.attempt.held.lapses_at = desk.server.now + 30.0
    with pytest.raises(AttemptEnded):
        desk.context.effect("refund").keyed(60).call(desk.send)
    assert desk.outcome()["type"] == "not_sent" and desk.outcome()["name"] == "refund"
    assert all(request.path.endswith("/answer") for request in desk.server.requests[1:])
    assert len(desk.sent) == 1


def test_a_look_up_that_finds_nothing_lets_it_be_sent() -> None:
    looked: list[str] = []

    def find(key: EffectKey) -> NotFound:
        looked.append(key)
        return NotFound()

    desk = Desk(LOOK_UP, said({"do": "reach"}), SEND, GO_ON)
    assert desk.capture(find) == "ch_1"
    assert (looked, desk.sent) == (["5d41"], ["5d41"])
    assert desk.server.bodies()[0]["quarantine_ms"] == 10_000


@pytest.mark.parametrize("wrong", [NotDone("503"), None, ConnectionError("reset")])
def test_a_look_up_that_was_not_answered_proves_nothing(wrong: Any) -> None:
    def find(_: EffectKey) -> Any:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    desk = Desk(LOOK_UP, STOP)
    with pytest.raises(AttemptEnded):
        desk.capture(find)
    assert desk.server.bodies()[1]["answer"]["type"] == "unknown" and desk.sent == []


def test_a_lost_lease_ends_everything_and_settles_nothing() -> None:
    desk = Desk(SEND, refused("lease-lost", 409))
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.outcome() is None
    with pytest.raises(AttemptEnded):
        desk.context.effect("another").natural().call(desk.send)
    assert len(desk.server.requests) == 2


def test_an_effect_is_made_once_in_an_attempt_unless_its_items_differ() -> None:
    desk = Desk(SEND, GO_ON, SEND, GO_ON)
    desk.capture()
    desk.context.effect("capture", item="2").keyed(60).call(desk.send)
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.outcome()["code"] == "effect_repeated" and len(desk.sent) == 2


def test_an_effect_that_was_dropped_under_way_is_unknown() -> None:
    desk = Desk(SEND, answer=asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        desk.capture()
    assert desk.outcome()["type"] == "unknown" and desk.outcome()["code"] == "cut_off"
    assert judge(desk.attempt, CutOff(Stop.TIMED_OUT)) == {
        "type": "retryable",
        "code": "timeout",
        "detail": "the handler did not end in time",
    }


def test_a_value_that_cannot_be_replayed_waits_for_a_person() -> None:
    desk = Desk(SEND, answer=Confirmed(object()))
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.outcome()["type"] == "park" and desk.outcome()["reason"] == "journal_decode"


def test_an_attempt_gives_up_a_fifth_of_its_lease_before_it_lapses() -> None:
    desk = Desk(SEND)
    desk.server.now += 23.9
    assert desk.attempt.held.stopped() is None
    desk.server.now += 0.2
    assert desk.attempt.held.stopped() is Stop.OUT_OF_TIME
    with pytest.raises(AttemptEnded):
        desk.capture()
    assert desk.sent == [] and desk.outcome()["code"] == "lease"


def test_an_extension_counts_from_before_it_was_asked_for() -> None:
    def slow(_: Request) -> Any:
        desk.server.now += 4.0
        return said({"results": [{"status": 200, "until": "", "lease_ms": 30_000, "cancel_requested": True}]})

    desk = Desk(slow, said({"results": [{"status": 409, "problem": {"type": "/problems/lease-lost"}}]}))
    desk.server.run(extend(desk.attempt.env, [desk.attempt.held]))
    assert desk.attempt.held.lapses_at == 130.0 and desk.context.cancel_requested
    desk.server.run(extend(desk.attempt.env, [desk.attempt.held]))
    assert desk.attempt.held.stopped() is Stop.LEASE_LOST


def test_a_settlement_is_repeated_word_for_word() -> None:
    desk = Desk(NoReply("reset", left=True), said({"results": [{"status": 200, "state": "completed"}]}))
    desk.context.then("credit", {"cents": 5})
    assert desk.server.run(settle(desk.attempt, {"type": "completed", "result": 1})) == Settled("completed")
    first, second = desk.server.requests
    assert first.body == second.body
    assert desk.server.bodies()[0]["settlements"][0]["then"] == [{"kind": "credit", "payload": {"cents": 5}, "version": 1}]
