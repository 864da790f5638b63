"""One external side effect, as a handler makes it: reach, send or look up, answer.

The server decides what an effect may do next, and writes that down before anything leaves. This file carries it out: it asks,
calls the application's function, says what came back, and ends the run where the server says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Union

from .durations import Duration, ms, seconds
from .errors import Conflict, Invalid, LeaseLost, NoSuchMessage, Problem, TidegateError, Unreachable
from .exchange import encoded, exchange_json
from .keepalive import Held, Stopped
from .leases import Lease, may_pass
from .outcomes import NotDone, NotFound, Rejected, RunEnded, Unknown
from .steps import Ask, Env, Json, Request, Steps

#: How long the answers of errors may become.
_LONGEST_DETAIL = 1000


@dataclass(frozen=True)
class Keyed:
    """The remote recognises our key for ``window`` from the first send: the same key is sent again. With a ``look_up``, it is
    asked when the window is over; "not found" is believed ``quarantine`` after the last possible send."""

    window: Duration
    quarantine: Duration = 120

    def wire(self, has_look_up: bool) -> dict[str, Any]:
        """As it is sent."""
        return {
            "policy": "keyed",
            "window_ms": ms(self.window),
            "or_lookup": has_look_up,
            "quarantine_ms": ms(self.quarantine),
        }


@dataclass(frozen=True)
class Lookup:
    """The remote can be asked whether it happened; "not found" is believed ``quarantine`` after the last possible send."""

    quarantine: Duration = 120

    def wire(self, has_look_up: bool) -> dict[str, Any]:
        """As it is sent."""
        if not has_look_up:
            raise ValueError("an effect that is looked up has no look_up; hint: pass look_up=, or choose AtMostOnce()")
        return {"policy": "lookup", "quarantine_ms": ms(self.quarantine)}


@dataclass(frozen=True)
class AtMostOnce:
    """Sent at most once; a missing answer waits for a person, who is believed ``quarantine`` after the last possible send."""

    quarantine: Duration = 120

    def wire(self, has_look_up: bool) -> dict[str, Any]:
        """As it is sent."""
        return {"policy": "at_most_once", "quarantine_ms": ms(self.quarantine)}


@dataclass(frozen=True)
class Natural:
    """Harmless to repeat: a missing answer is tried again."""

    def wire(self, has_look_up: bool) -> dict[str, Any]:
        """As it is sent."""
        return {"policy": "natural"}


EffectPolicy = Union[Keyed, Lookup, AtMostOnce, Natural]


@dataclass(frozen=True)
class Effect:
    """An effect as a handler describes it."""

    name: str
    policy: EffectPolicy
    send: Callable[[str], Any]
    look_up: Callable[[str], Any] | None = None
    item: str | None = None
    request: Json = None
    send_within: Duration = 30
    reconcile_for: Duration | None = None

    def id(self) -> dict[str, Any]:
        """Its name on the wire."""
        return {"effect": self.name, **({} if self.item is None else {"item": self.item})}

    def asked(self) -> dict[str, Any]:
        """What is asked of the remote, if it is not the payload."""
        return {} if self.request is None else {"request": self.request}

    def reach(self) -> dict[str, Any]:
        """As it is reached."""
        if self.look_up is not None and isinstance(self.policy, (AtMostOnce, Natural)):
            raise ValueError(f"effect {self.name} is never looked up; hint: choose Lookup(), or Keyed() with a look_up")
        more = {} if self.reconcile_for is None else {"reconcile_for_ms": ms(self.reconcile_for)}
        policy = self.policy.wire(self.look_up is not None)
        return {**self.id(), **policy, **self.asked(), "send_within_ms": ms(self.send_within), **more}


@dataclass
class Run:
    """What one run of a message has come to so far."""

    lease: Lease
    held: Held
    #: How the run ends, if an effect ended it: then nothing that the handler does changes that.
    ended: dict[str, Any] | None = None
    #: Answers that could not be told; they ride the settlement.
    journal: list[dict[str, Any]] = field(default_factory=list)
    then: list[dict[str, Any]] = field(default_factory=list)
    compensate: list[dict[str, Any]] = field(default_factory=list)
    _reached: set[tuple[str, str | None]] = field(default_factory=set)
    _under_way: str | None = None
    #: A handler may have threads of its own, and only one of them may pass.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def end(self, outcome: str, code: str, detail: str, **more: Any) -> RunEnded:
        """Ends the run."""
        return self.end_with({"outcome": outcome, "code": code, "detail": detail[:_LONGEST_DETAIL], **more})

    def end_with(self, settlement: dict[str, Any]) -> RunEnded:
        """Ends the run as the server says."""
        if self.ended is None:
            self.ended = settlement
        return RunEnded(f"{settlement['outcome']}, {settlement.get('code', '')}: {settlement.get('detail', '')}")

    def lose(self) -> RunEnded:
        """The lease is lost."""
        self.held.stop(Stopped.LEASE_LOST)
        return RunEnded(Stopped.LEASE_LOST.value)

    def begin(self, effect: Effect) -> None:
        """Marks an effect as reached, or refuses it."""
        with self._lock:
            if self.ended is not None:
                raise self.end_with(self.ended)
            if self.held.stopped is not None:
                raise RunEnded(self.held.stopped.value)
            if self._under_way is not None:
                raise self.end("retryable", "effect", f"effect {effect.name} began while {self._under_way} was under way")
            if (effect.name, effect.item) in self._reached:
                hint = "hint: tell repetitions apart by item"
                raise self.end("retryable", "effect", f"effect {effect.name} was reached twice in one run; {hint}")
            self._reached.add((effect.name, effect.item))
            self._under_way = effect.name

    def over(self) -> None:
        """The effect is no longer under way."""
        self._under_way = None


def make(env: Env, run: Run, effect: Effect) -> Steps[Any]:
    """Makes an effect, or replays what is known of it."""
    reach = effect.reach()
    # What JSON cannot say is an error of the handler, before anything is known of the effect.
    encoded(reach)
    run.begin(effect)
    try:
        return (yield from _Call(env, run, effect, reach).carry_out())
    finally:
        run.over()


@dataclass
class _Call:
    env: Env
    run: Run
    effect: Effect
    reach: dict[str, Any]
    #: When the intent was asked for: no byte leaves later than its time after that.
    asked_at: float = 0.0
    #: A reach got no answer, and may have left an intent by which nothing was sent.
    unsent: bool = False

    def carry_out(self) -> Steps[Any]:
        told = yield from self._reach()
        while True:
            what = told["do"]
            if what == "send":
                self.unsent = False
                told = yield from self._send(told)
            elif what == "look_up":
                told = yield from self._look_up(told)
            elif what == "reach":
                told = yield from self._reach()
            elif what == "value":
                return told.get("value")
            elif what == "rejected":
                raise Rejected(told.get("code", ""), told.get("detail", ""))
            elif what == "stop":
                if self.unsent:
                    # Not said, what is sent at most once would wait for a person although nothing was sent.
                    self._say_unsent()
                raise self.run.end_with(dict(told["settle"]))
            else:
                raise self.run.end("retryable", "instruction", f"the server says {what!r}; hint: update this client")

    def _reach(self) -> Steps[Any]:
        self.asked_at = self.env.clock()
        body = {"token": self.run.lease.token, **self.reach}

        def again() -> bytes:
            # Without an answer nothing was sent, and the server may forget that it said so.
            self.unsent = True
            return encoded({**body, "unsent": True})

        try:
            return (yield from self._exchange("", body, again))
        except BaseException as error:
            self._say_unsent()
            if not isinstance(error, TidegateError):
                raise
            raise self._refused(error, "retryable", "not_done") from error

    def _say_unsent(self) -> None:
        """Says with the settlement that nothing was sent; it changes nothing where this run left no intent."""
        if not isinstance(self.effect.policy, Natural):
            self.run.journal.append({"write": "not_sent", **self.effect.id()})

    def _send(self, told: Any) -> Steps[Any]:
        within = told["within_ms"] / 1000
        now = self.env.clock()
        left = min(self.asked_at + within, self.run.held.lapses_at) - now
        # The intent may have taken longer than the lease: then somebody else may be sending.
        if left <= 0 or self.run.held.stopped is not None:
            why = "the lease or the time to send was over before the request left"
            return (yield from self._answer(told, {"answer": "not_done", "why": why}))
        try:
            value = yield Ask(self.effect.send, told["key"], left)
        except NotDone as said:
            after = {} if said.after is None else {"after_ms": ms(said.after)}
            return (yield from self._answer(told, {"answer": "not_done", "why": str(said), **after}))
        except Exception as error:
            return (yield from self._answer(told, _answer_of(error, left)))
        return (yield from self._confirm(told, value))

    def _look_up(self, told: Any) -> Steps[Any]:
        assert self.effect.look_up is not None, "the server was told whether there is one"
        within = seconds(self.effect.send_within)
        try:
            value = yield Ask(self.effect.look_up, told["key"], within)
        except NotFound:
            return (yield from self._answer(told, {"answer": "not_found"}))
        except Exception as error:
            return (yield from self._answer(told, _answer_of(error, within)))
        return (yield from self._confirm(told, value))

    def _confirm(self, told: Any, value: Any) -> Steps[Any]:
        try:
            encoded(value)
        except (TypeError, ValueError) as error:
            # It happened, and nobody but a person can supply another value.
            what = f"effect {self.effect.name} was confirmed, and its value does not serialise to JSON: {error}"
            if isinstance(self.effect.policy, Natural):
                raise self.run.end("refused", "effect_value", what) from error
            raise self.run.end("park", "journal_decode", what, reason="journal_decode") from error
        return (yield from self._answer(told, {"answer": "confirmed", "value": value}))

    def _answer(self, told: Any, answer: dict[str, Any]) -> Steps[Any]:
        is_natural = isinstance(self.effect.policy, Natural)
        which = {"policy": "natural", **self.effect.asked()} if is_natural else {"seq": told["seq"]}
        body = {"token": self.run.lease.token, **self.effect.id(), **which, **answer}
        try:
            return (yield from self._exchange("/answer", body))
        except BaseException as error:
            if not is_natural:
                said = {name: value for name, value in answer.items() if name not in ("why", "after_ms")}
                if answer["answer"] == "unknown":
                    said["why"] = answer["why"]
                self.run.journal.append({"write": "answer", **self.effect.id(), **which, **said})
            if not isinstance(error, TidegateError):
                raise
            untold = answer["answer"] if answer["answer"] in ("not_done", "unknown") else "retryable"
            raise self._refused(error, "unknown", untold) from error

    def _exchange(self, which: str, body: dict[str, Any], again: Callable[[], bytes] | None = None) -> Steps[Any]:
        path = f"/v1/messages/{self.run.lease.message.id}/effects{which}"
        request = Request("POST", path, body=encoded(body), again=again, repeatable=True)
        return (yield from exchange_json(self.env, request, within=self.run.held.left(self.env.clock())))

    def _refused(self, error: TidegateError, refused: str, unanswered: str) -> RunEnded:
        """How the run ends when the server refuses to be told, or does not answer."""
        if isinstance(error, (LeaseLost, NoSuchMessage)):
            return self.run.lose()
        if may_pass(error):
            return self.run.end(unanswered, "unreachable", str(error))
        if isinstance(error, Conflict):
            return self.run.end(refused, "journal", str(error))
        code = "effect" if isinstance(error, Invalid) else error.slug if isinstance(error, Problem) else "error"
        return self.run.end(refused, code or "error", str(error))


def _answer_of(error: Exception, within: float) -> dict[str, Any]:
    if isinstance(error, Rejected):
        return {"answer": "rejected", "code": error.code, "detail": error.detail}
    if isinstance(error, Unknown):
        return {"answer": "unknown", "why": str(error)[:_LONGEST_DETAIL]}
    return {"answer": "unknown", "why": why(error) if str(error) else f"{type(error).__name__} within {within:.3g} s"}


def why(error: BaseException) -> str:
    """An error in one text, with its causes: for people."""
    texts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(texts) < 5:
        texts.append(f"{type(seen).__name__}: {seen}" if str(seen) else type(seen).__name__)
        seen = seen.__cause__
    return ": ".join(texts)[:_LONGEST_DETAIL]
