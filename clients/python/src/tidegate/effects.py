"""An external side effect inside a handler: intent, send, answer.

The server decides from the journal what may be done (replay, send, look up first, leave it to a person) and writes the
intent before it says "send"; this file carries that out. It bounds the send in time, turns what the author's function
returns into one of four answers, and never guesses: an exception, a time-out or a wrong return value is *unknown*.

How an effect ended an attempt is kept by the attempt, whatever the handler makes of the exception that it sees.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union

from .durations import DAY, Duration, ms, seconds
from .errors import LeaseLost, Problem, TidegateError
from .exchange import encoded, exchange_json
from .steps import Json, Request, Steps, invoke

if TYPE_CHECKING:
    from .attempt import Attempt

T = TypeVar("T")


@dataclass(frozen=True)
class Confirmed(Generic[T]):
    """It happened, and here is what a later step needs of it: anything JSON can say. What JSON makes of it is what the
    handler gets, the first time as in every replay (a tuple comes back as a list)."""

    value: T


@dataclass(frozen=True)
class Rejected:
    """The remote said no, finally: a declined card."""

    code: str
    detail: str = ""


@dataclass(frozen=True)
class NotDone:
    """Certainly nothing happened: connection refused, 429, a 503 that promises so. ``after``: when to come again."""

    why: str
    after: Duration | None = None


@dataclass(frozen=True)
class Unknown:
    """Anything else: a time-out, a reset, a reply that cannot be read. In doubt it is this."""

    why: str


@dataclass(frozen=True)
class NotFound:
    """Of a look-up: the remote answered, and knows nothing under this key."""


#: What came back from a remote, as the author of the call understands it.
Answer = Union[Confirmed[T], Rejected, NotDone, Unknown]
#: What a look-up found.
Found = Union[Confirmed[Any], Rejected, NotFound, Unknown]


class EffectKey(str):
    """The idempotency key to send: the same for every send of an effect, over all attempts and processes.

    A blocking call cannot be cut off from outside: give its HTTP client ``timeout=key.time_left()``, so that no request of
    yours leaves after the store counts on it.
    """

    _give_up_at: float
    _clock: Callable[[], float]

    def __new__(cls, key: str, give_up_at: float = float("inf"), clock: Callable[[], float] = time.monotonic) -> EffectKey:
        made = super().__new__(cls, key)
        made._give_up_at = give_up_at
        made._clock = clock
        return made

    def time_left(self) -> float:
        """Seconds until the answer counts as unknown. Never 0, which some HTTP clients take for "no limit"."""
        return max(0.001, self._give_up_at - self._clock())


Find = Callable[[EffectKey], Found]
AsyncFind = Callable[[EffectKey], Awaitable[Found]]


class Rejection(Exception):
    """A remote refused an effect, finally. Passed on by the handler it is the message's answer: failed, with this code."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class AttemptEnded(BaseException):
    """The attempt is over: the answer about an effect is missing, or the lease is lost. Let it pass.

    Not an ``Exception``, so that ``except Exception`` lets it pass. Caught all the same it changes nothing: what the
    attempt ended with is settled, whatever the handler returns.
    """


# --- what the author says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """An effect as its author describes it."""

    name: str
    item: str | None = None
    policy: str = ""
    window: float | None = None
    or_lookup: bool = False
    quarantine: float = 120.0
    send_within: float = 30.0
    reconcile_for: float = DAY
    #: In a tuple, because "no request given" and "the request is null" are two things.
    request: tuple[Json] | None = None

    def __str__(self) -> str:
        return self.name if self.item is None else f"{self.name}[{self.item}]"

    def wire(self, token: str) -> dict[str, Any]:
        """The body of a reach."""
        body: dict[str, Any] = {
            "token": token,
            "name": self.name,
            "item": self.item,
            "policy": self.policy,
            "quarantine_ms": ms(self.quarantine),
            "send_within_ms": ms(self.send_within),
            "reconcile_for_ms": ms(self.reconcile_for),
        }
        if self.window is not None:
            body |= {"window_ms": ms(self.window), "or_lookup": self.or_lookup}
        if self.request is not None:
            body["request"] = self.request[0]
        return body


EffectT = TypeVar("EffectT")
FindT = TypeVar("FindT")


class EffectBuilder(Generic[EffectT, FindT]):
    """An effect whose author has not yet said what may be done when its answer is missing. There is no default."""

    def __init__(self, plan: Plan, make: Callable[[Plan, FindT | None], EffectT]) -> None:
        self._plan = plan
        self._make = make

    def keyed(self, window: Duration) -> EffectT:
        """The remote recognises our key for this long from the first send: the same key is sent again."""
        return self._make(replace(self._plan, policy="keyed", window=seconds(window)), None)

    def lookup(self, quarantine: Duration, find: FindT) -> EffectT:
        """The remote can be asked whether it happened; "not found" is believed ``quarantine`` after the last possible send."""
        return self._make(replace(self._plan, policy="lookup", quarantine=seconds(quarantine)), find)

    def at_most_once(self) -> EffectT:
        """Sent at most once; a missing answer waits for a person."""
        return self._make(replace(self._plan, policy="at_most_once"), None)

    def natural(self) -> EffectT:
        """Harmless to repeat: no intent is written, and a missing answer is tried again."""
        return self._make(replace(self._plan, policy="natural"), None)


class _WithPolicy(Generic[FindT]):
    def __init__(self, attempt: Attempt, plan: Plan, find: FindT | None) -> None:
        self._attempt = attempt
        self._plan = plan
        self._find = find

    def _looked_up(self, quarantine: Duration, find: FindT) -> tuple[Attempt, Plan, FindT]:
        if self._plan.policy != "keyed":
            raise TypeError(f"or_lookup belongs to keyed, not to {self._plan.policy}; hint: .lookup(..) stands alone")
        return self._attempt, replace(self._plan, or_lookup=True, quarantine=seconds(quarantine)), find


class Effect(_WithPolicy[Find]):
    """An effect with its policy, ready to be called."""

    def or_lookup(self, quarantine: Duration, find: Find) -> Effect:
        """What to do when the window of a keyed effect has passed: ask before sending again."""
        return Effect(*self._looked_up(quarantine, find))

    def call(self, send: Callable[[EffectKey], Answer[T]]) -> T:
        """Makes the effect, or replays what is known of it.

        ``send`` gets the key to send and runs at most once, after the intent is durable. What it raises is *unknown*:
        nothing is concluded from an exception. Raises :class:`Rejection`, and :class:`AttemptEnded` for the runtime.
        """
        value: T = self._attempt.drive(course(self._attempt, self._plan, send, self._find))
        return value


class AsyncEffect(_WithPolicy[AsyncFind]):
    """An effect with its policy, ready to be called and awaited."""

    def or_lookup(self, quarantine: Duration, find: AsyncFind) -> AsyncEffect:
        """What to do when the window of a keyed effect has passed: ask before sending again."""
        return AsyncEffect(*self._looked_up(quarantine, find))

    async def call(self, send: Callable[[EffectKey], Awaitable[Answer[T]]]) -> T:
        """As :meth:`Effect.call`; ``send`` is cancelled when its time is over, and then its answer is unknown."""
        value: T = await self._attempt.drive_async(course(self._attempt, self._plan, send, self._find))
        return value


# --- what is done -----------------------------------------------------------------------------------------------------


def course(attempt: Attempt, plan: Plan, send: Callable[..., Any], find: Callable[..., Any] | None) -> Steps[Any]:
    """One effect from its reach to its value. No I/O."""
    with attempt.under_way(plan):
        while True:
            todo = yield from reach(attempt, plan)
            if todo["do"] == "replay":
                return todo["value"]
            if todo["do"] in ("send", "look_up"):
                is_send = todo["do"] == "send"
                said, value = yield from said_by(attempt, plan, send if is_send else find, is_send, todo)
                todo = yield from deliver(attempt, plan, todo["ticket"], said)
                if todo["do"] == "go_on":
                    return value
                if todo["do"] == "reach":
                    continue  # It never happened: the journal allows a send now.
            if todo["do"] == "rejected":
                raise Rejection(todo["code"], todo["detail"])
            if todo["do"] == "stop":
                raise attempt.end(todo["outcome"])
            raise attempt.end(_retryable("journal", f"effect {plan}: the server said {todo['do']!r}, which this client does not know"))


def reach(attempt: Attempt, plan: Plan) -> Steps[dict[str, Any]]:
    """Asks what may be done; the intent is durable when the answer is "send".

    A reach whose reply is missing may have written an intent. Nothing was sent under it, since its key is not known here:
    the repeat says that it is one, and gets the same intent. If there is no answer in time, the attempt ends and says so.
    """
    attempt.check_may_go_on()
    not_sent = {"type": "not_sent", "name": plan.name, "item": plan.item}
    try:
        yield from deliver_pending(attempt)
        asked_at = attempt.env.clock()
        todo = yield from _asked(attempt, plan, within=min(plan.send_within, attempt.held.time_left()))
        if not isinstance(todo, dict) or not isinstance(todo.get("do"), str):
            raise TidegateError("the reply is no decision")
    except LeaseLost:
        raise attempt.lost() from None
    except Problem as problem:
        if problem.status < 500 and not problem.retryable:
            raise attempt.end(_retryable("effect", f"effect {plan}: {problem}")) from problem
        raise attempt.end({**not_sent, "detail": str(problem)}) from problem
    except TidegateError as error:
        raise attempt.end({**not_sent, "detail": str(error)}) from error
    except (TypeError, ValueError) as error:
        raise attempt.end(_retryable("effect", f"effect {plan}: its request is no JSON: {error}")) from error
    return {**todo, "give_up_at": asked_at + todo.get("send_within_ms", 0) / 1000}


def _asked(attempt: Attempt, plan: Plan, within: float) -> Steps[Any]:
    give_up_at = attempt.env.clock() + within
    path, body = f"/v1/messages/{attempt.lease.id}/effects", plan.wire(attempt.lease.token)
    try:
        return (yield from exchange_json(attempt.env, Request("POST", path, body=encoded(body)), within=within))
    except TidegateError as error:
        if not error.retryable:
            raise
    again = Request("POST", path, body=encoded({**body, "repeat": True}), repeatable=True)
    left = max(0.0, give_up_at - attempt.env.clock())
    return (yield from exchange_json(attempt.env, again, within=left))


def said_by(
    attempt: Attempt, plan: Plan, function: Callable[..., Any] | None, is_send: bool, todo: dict[str, Any]
) -> Steps[tuple[dict[str, Any], Any]]:
    """Calls the remote, and puts what its author makes of the reply on the wire; with the value that a replay would give."""
    clock = attempt.env.clock
    give_up_at: float = min(todo["give_up_at"], attempt.held.lapses_at)
    within = give_up_at - clock()
    if function is None:
        return {"type": "unknown", "why": "the server asks for a look-up, and this handler has none"}, None
    if within <= 0:
        # The intent took longer than the lease or the time to send: then somebody else may be sending.
        why = "the time to send was over before the request left"
        return ({"type": "not_done", "why": why} if is_send else {"type": "unknown", "why": why}), None
    answer: Any
    try:
        answer = yield from invoke(function, EffectKey(todo["effect_key"], give_up_at, clock), within=within)
    except Exception as error:  # noqa: BLE001: whatever it is, nothing is concluded from it
        answer = Unknown(f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__} within {within:.3f} s")
    if isinstance(answer, Confirmed):
        try:
            value = json.loads(encoded(answer.value))
        except (TypeError, ValueError) as error:
            raise attempt.end(_unreplayable(plan, error)) from error
        return {"type": "confirmed", "value": value}, value
    if isinstance(answer, Rejected):
        return {"type": "rejected", "code": answer.code, "detail": answer.detail}, None
    if isinstance(answer, NotDone) and is_send:
        after = {} if answer.after is None else {"after_ms": ms(seconds(answer.after))}
        return {"type": "not_done", "why": answer.why, **after}, None
    if isinstance(answer, NotFound) and not is_send:
        return {"type": "not_found"}, None
    if isinstance(answer, Unknown):
        return {"type": "unknown", "why": answer.why}, None
    what = "send" if is_send else "find"
    return {"type": "unknown", "why": f"{what} returned a {type(answer).__name__}, which is no answer of a {what}"}, None


def deliver(attempt: Attempt, plan: Plan, ticket: str, said: dict[str, Any]) -> Steps[dict[str, Any]]:
    """Tells the server what the remote said, again and again for as long as the lease can last. An answer that cannot be
    delivered rides the settlement, and what follows from it is the same."""
    try:
        return (yield from _told(attempt, ticket, said))
    except LeaseLost:
        raise attempt.lost() from None
    except Problem as problem:
        if problem.status < 500 and not problem.retryable:
            raise attempt.end(_retryable("journal", f"effect {plan}: {problem}")) from problem
    except TidegateError:
        pass
    if said["type"] != "not_found":
        attempt.undelivered.append({"ticket": ticket, "answer": said})
    return _undelivered(plan, said)


def deliver_pending(attempt: Attempt) -> Steps[None]:
    """Nothing begins before what was answered is written down."""
    while attempt.undelivered:
        yield from _told(attempt, attempt.undelivered[0]["ticket"], attempt.undelivered[0]["answer"])
        del attempt.undelivered[0]


def _told(attempt: Attempt, ticket: str, said: dict[str, Any]) -> Steps[dict[str, Any]]:
    body = encoded({"token": attempt.lease.token, "ticket": ticket, "answer": said})
    request = Request("POST", f"/v1/messages/{attempt.lease.id}/effects/answer", body=body, repeatable=True)
    todo = yield from exchange_json(attempt.env, request, within=attempt.held.time_left())
    if not isinstance(todo, dict) or not isinstance(todo.get("do"), str):
        raise TidegateError("the reply to an answer says nothing that this client knows")
    return todo


def _undelivered(plan: Plan, said: dict[str, Any]) -> dict[str, Any]:
    """What the server would have said to an answer that could not be delivered."""
    if said["type"] == "confirmed":
        return {"do": "go_on"}
    if said["type"] == "rejected":
        return {"do": "rejected", "code": said["code"], "detail": said["detail"]}
    if said["type"] == "not_done":
        after = {"after_ms": said["after_ms"]} if "after_ms" in said else {}
        return {"do": "stop", "outcome": {"type": "not_done", "code": "not_done", "detail": said["why"], **after}}
    if said["type"] == "not_found":
        return {"do": "stop", "outcome": {"type": "unknown", "code": "lookup", "detail": "what the look-up found could not be stored"}}
    if plan.policy == "natural":
        return {"do": "stop", "outcome": _retryable("unknown", said["why"])}
    return {"do": "stop", "outcome": {"type": "unknown", "code": "unknown", "detail": said["why"]}}


def _unreplayable(plan: Plan, error: Exception) -> dict[str, Any]:
    """It happened, and what it returned cannot be kept: nobody but a person can supply another value."""
    detail = f"effect {plan} was confirmed, and its value is no JSON: {error}"
    if plan.policy == "natural":
        return {"type": "refused", "code": "effect_value", "detail": detail}
    return {"type": "park", "reason": "journal_decode", "code": "journal_decode", "detail": detail}


def _retryable(code: str, detail: str) -> dict[str, Any]:
    return {"type": "retryable", "code": code, "detail": detail}
