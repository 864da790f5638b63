"""One attempt: what its handler holds, what it has done so far, and what is reported in the end. No I/O.

Start reading here. decode → run → judge → settle: :mod:`tidegate.worker` runs the handler, :func:`judge` makes an outcome of
how that went, :func:`settle` stores it. What an effect ended stays ended, whatever the handler makes of it.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, Union

from .durations import DAY, Duration, moment, ms, seconds
from .effects import AsyncEffect, AsyncFind, AttemptEnded, Effect, EffectBuilder, Find, Plan, Rejection
from .errors import LeaseLost, Problem, TidegateError, problem
from .exchange import encoded, exchange_json
from .keepalive import Held, Stop
from .steps import Env, Json, Request, Steps

if TYPE_CHECKING:
    from .drivers import AsyncDriver, Driver

T = TypeVar("T")


class Retryable(Exception):
    """Raised by a handler: it may pass, come again (not before ``after``). ``code`` is short and stable, for groups and
    metrics; ``detail`` is for people and holds no secrets. Any other exception is retryable with code ``error``."""

    def __init__(self, code: str, detail: str = "", *, after: Duration | None = None) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.after = after


class Permanent(Exception):
    """Raised by a handler: never. A fact of the business, and the stored answer that every duplicate gets."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class Snooze(Exception):
    """Raised by a handler: not now, come again after a while. Counts no attempt."""

    def __init__(self, after: Duration) -> None:
        super().__init__(f"again in {seconds(after)} s")
        self.after = after


@dataclass(frozen=True)
class Lease:
    """The time-limited right to run a message, as the server granted it."""

    id: str
    token: str
    lease: float
    queue: str
    kind: str
    version: int
    key: str
    attempt: int
    flow: str
    suspect: bool
    reconciling: bool
    headers: Mapping[str, str]
    payload: Any
    said: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Lease:
        """From a claim's reply."""
        return cls(
            id=said["id"],
            token=said["token"],
            lease=said["lease_ms"] / 1000,
            queue=said["queue"],
            kind=said["kind"],
            version=said["version"],
            key=said["key"],
            attempt=said["attempt"],
            flow=said["flow"],
            suspect=said["suspect"],
            reconciling=said["reconciling"],
            headers=said["headers"],
            payload=said["payload"],
            said=said,
        )


class Attempt:
    """What one attempt has done so far."""

    def __init__(self, lease: Lease, held: Held, env: Env, driver: Driver, async_driver: AsyncDriver) -> None:
        self.lease = lease
        self.held = held
        self.env = env
        self.then: list[dict[str, Any]] = []
        self.compensate: list[dict[str, Any]] = []
        #: Answers of effects that the server has not heard of yet.
        self.undelivered: list[dict[str, Any]] = []
        #: The outcome that an effect ended this attempt with.
        self.ended: dict[str, Any] | None = None
        #: An effect was dropped before its answer was known.
        self.cut_off: str | None = None
        self._reached: set[tuple[str, str | None]] = set()
        self._under_way: Plan | None = None
        self._lock = threading.Lock()
        self._driver = driver
        self._async_driver = async_driver

    def drive(self, steps: Steps[T]) -> T:
        """Carries steps out, blocking."""
        return self._driver.run(steps)

    async def drive_async(self, steps: Steps[T]) -> T:
        """Carries steps out, awaiting."""
        return await self._async_driver.run(steps)

    def end(self, outcome: Mapping[str, Any]) -> AttemptEnded:
        """The attempt is over; the first reason counts. Raise what this returns."""
        if self.ended is None:
            self.ended = dict(outcome)
        return AttemptEnded(f"this attempt has ended: {self.ended}")

    def lost(self) -> AttemptEnded:
        """The message is somebody else's by now. Raise what this returns."""
        self.held.stop(Stop.LEASE_LOST)
        return AttemptEnded("the lease of this attempt is lost")

    def check_may_go_on(self) -> None:
        """Refuses a step of an attempt that is over."""
        if self.ended is not None:
            raise AttemptEnded(f"this attempt has ended: {self.ended}")
        stopped = self.held.stopped()
        if stopped is Stop.LEASE_LOST:
            raise self.lost()
        if stopped is Stop.TIMED_OUT:
            raise self.end(_failed("retryable", "timeout", "the handler did not end in time"))
        if stopped is Stop.DRAINED:
            raise self.end({"type": "release"})
        if stopped is Stop.OUT_OF_TIME:
            raise self.end(_failed("retryable", "lease", "the lease could not be extended in time"))

    @contextmanager
    def under_way(self, plan: Plan) -> Iterator[None]:
        """Marks an effect as reached: once in an attempt, and one at a time, or nobody could say which came first."""
        self.check_may_go_on()
        identity = (plan.name, plan.item)
        with self._lock:
            if self._under_way is not None:
                detail = f"effect {plan} was begun beside effect {self._under_way}; hint: finish one, then the other"
                raise self.end(_failed("retryable", "effect_concurrent", detail))
            if identity in self._reached:
                detail = f"effect {plan} was used twice in one attempt; hint: tell them apart with item="
                raise self.end(_failed("retryable", "effect_repeated", detail))
            self._reached.add(identity)
            self._under_way = plan
        answered = False
        try:
            yield
            answered = True
        except (AttemptEnded, Rejection):
            answered = True
            raise
        finally:
            self._under_way = None
            if not answered:
                self.cut_off = f"effect {plan} was dropped before its answer was known"

    def follow(self, to: list[dict[str, Any]], follow_up: dict[str, Any]) -> None:
        """Notes a message that commits with this one's end."""
        try:
            encoded(follow_up)
        except (TypeError, ValueError) as error:
            detail = f"the follow-up of kind {follow_up['kind']} is no JSON: {error}"
            raise self.end(_failed("refused", "follow_up", detail)) from error
        to.append(follow_up)


class _Context:
    """One attempt, as its handler sees it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def id(self) -> str:
        """The message."""
        return self._attempt.lease.id

    @property
    def flow(self) -> str:
        """The first message of its flow."""
        return self._attempt.lease.flow

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return self._attempt.lease.key

    @property
    def queue(self) -> str:
        """Its queue."""
        return self._attempt.lease.queue

    @property
    def version(self) -> int:
        """The version of its payload's shape."""
        return self._attempt.lease.version

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1. A run that clears up an open effect is not counted."""
        return self._attempt.lease.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """What travels with the message: ``traceparent`` and such."""
        return self._attempt.lease.headers

    @property
    def cancel_requested(self) -> bool:
        """An operator asked to call the message off: no first effect begins, and the handler may return early."""
        return self._attempt.held.cancel_requested

    @property
    def stopped(self) -> bool:
        """There is no point in going on: the lease is lost or about to lapse, time is up, or the worker drains."""
        return self._attempt.held.stopped() is not None

    def then(
        self,
        kind: str,
        payload: Json,
        *,
        item: str | None = None,
        queue: str | None = None,
        version: int = 1,
        delay: Duration | None = None,
        due_at: datetime | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        max_age: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Enqueues a message in the commit that completes this one, and only in that. Its key is made from this message's,
        so that it follows once, however often this runs; ``item`` tells several of one kind apart."""
        options = follow_up_options(item, queue, version, delay, due_at, priority, deadline, max_age, headers)
        self._attempt.follow(self._attempt.then, {"kind": kind, "payload": payload, **options})

    def compensate(
        self,
        kind: str,
        payload: Json,
        *,
        item: str | None = None,
        queue: str | None = None,
        version: int = 1,
        delay: Duration | None = None,
        due_at: datetime | None = None,
        priority: int | None = None,
        deadline: datetime | None = None,
        max_age: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Enqueues a message in the commit that makes this one failed or dead: what undoes an effect that was confirmed."""
        options = follow_up_options(item, queue, version, delay, due_at, priority, deadline, max_age, headers)
        self._attempt.follow(self._attempt.compensate, {"kind": kind, "payload": payload, **options})

    def _plan(
        self,
        name: str,
        item: str | None,
        request: Json | None,
        send_within: Duration,
        reconcile_for: Duration,
        quarantine: Duration,
    ) -> Plan:
        return Plan(
            name=name,
            item=item,
            request=None if request is None else (request,),
            send_within=seconds(send_within),
            reconcile_for=seconds(reconcile_for),
            quarantine=seconds(quarantine),
        )


class Context(_Context):
    """One attempt, as a handler that is a plain function sees it."""

    def effect(
        self,
        name: str,
        *,
        item: str | None = None,
        request: Json | None = None,
        send_within: Duration = 30,
        reconcile_for: Duration = DAY,
        quarantine: Duration = 120,
    ) -> EffectBuilder[Effect, Find]:
        """An external side effect of this handler.

        ``name`` is its identity over all attempts and versions of the code and is used once in an attempt; ``item`` tells
        repetitions apart. ``request`` is what is asked of the remote, if more or less than the payload. ``send_within``: how
        long the call may take, and no longer than the lease; ``reconcile_for``: how long a missing answer is cleared up
        before a person has to; ``quarantine``: how long after the last possible send a *person* is believed who says that
        it did not happen.
        """
        plan = self._plan(name, item, request, send_within, reconcile_for, quarantine)
        return EffectBuilder(plan, lambda plan, find: Effect(self._attempt, plan, find))


class AsyncContext(_Context):
    """One attempt, as a handler that is an ``async def`` sees it."""

    def effect(
        self,
        name: str,
        *,
        item: str | None = None,
        request: Json | None = None,
        send_within: Duration = 30,
        reconcile_for: Duration = DAY,
        quarantine: Duration = 120,
    ) -> EffectBuilder[AsyncEffect, AsyncFind]:
        """As :meth:`Context.effect`, with functions that are awaited."""
        plan = self._plan(name, item, request, send_within, reconcile_for, quarantine)
        return EffectBuilder(plan, lambda plan, find: AsyncEffect(self._attempt, plan, find))


def follow_up_options(
    item: str | None,
    queue: str | None,
    version: int,
    delay: Duration | None,
    due_at: datetime | None,
    priority: int | None,
    deadline: datetime | None,
    max_age: Duration | None,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    """The members of a follow-up beside kind and payload, as far as they are given."""
    members: dict[str, Any] = {
        "item": item,
        "queue": queue,
        "version": version,
        "delay_ms": None if delay is None else ms(delay),
        "due_at": None if due_at is None else moment(due_at),
        "priority": priority,
        "deadline": None if deadline is None else moment(deadline),
        "max_age_ms": None if max_age is None else ms(max_age),
        "headers": None if headers is None else dict(headers),
    }
    return {name: value for name, value in members.items() if value is not None}


# --- how it ends ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Returned:
    """The handler returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The handler raised."""

    error: BaseException


@dataclass(frozen=True)
class Undecodable:
    """The payload could not be read by this code."""

    error: Exception


@dataclass(frozen=True)
class CutOff:
    """The handler was cut off, or never began."""

    stop: Stop


Ran = Union[Returned, Raised, Undecodable, CutOff]


def judge(attempt: Attempt, ran: Ran) -> dict[str, Any] | None:
    """What is reported. ``None``: nothing, because somebody else has the message."""
    if attempt.held.stopped() is Stop.LEASE_LOST:
        return None
    if attempt.ended is not None:
        return attempt.ended
    if isinstance(ran, CutOff):
        return _cut_off(ran.stop)
    if attempt.cut_off is not None:
        return _failed("unknown", "cut_off", attempt.cut_off)
    if isinstance(ran, Returned):
        try:
            encoded(ran.value)
        except (TypeError, ValueError) as error:
            return _failed("refused", "result", f"the result is no JSON: {error}")
        return {"type": "completed", "result": ran.value}
    if isinstance(ran, Undecodable):
        return {"type": "undecodable", "detail": _text(ran.error)}
    raised = ran.error
    if isinstance(raised, Retryable):
        after = {} if raised.after is None else {"after_ms": ms(raised.after)}
        return {**_failed("retryable", raised.code, raised.detail), **after}
    if isinstance(raised, (Permanent, Rejection)):
        return _failed("permanent", raised.code, raised.detail)
    if isinstance(raised, Snooze):
        return {"type": "snooze", "after_ms": ms(raised.after)}
    return _failed("retryable", "error", _text(raised))


def _cut_off(stop: Stop) -> dict[str, Any] | None:
    if stop is Stop.LEASE_LOST:
        return None
    if stop is Stop.DRAINED:
        return {"type": "release"}
    if stop is Stop.TIMED_OUT:
        return _failed("retryable", "timeout", "the handler did not end in time")
    return _failed("retryable", "lease", "the lease could not be extended in time")


def _failed(kind: str, code: str, detail: str) -> dict[str, Any]:
    return {"type": kind, "code": code, "detail": detail}


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@dataclass(frozen=True)
class Settled:
    """What the message became; ``state`` is none if it is somebody else's."""

    state: str | None
    why: str = ""


def settle(attempt: Attempt, outcome: Mapping[str, Any]) -> Steps[Settled]:
    """Stores the end of a run, again and again until it is known to be stored or the lease is over. The body never changes:
    the commit may have happened, and the same settlement again is harmless."""
    settlement = {
        "id": attempt.lease.id,
        "token": attempt.lease.token,
        "outcome": outcome,
        "then": attempt.then,
        "compensate": attempt.compensate,
        "answers": attempt.undelivered,
    }
    attempt.held.settling = True
    request = Request("POST", "/v1/leases/settle", body=encoded({"settlements": [settlement]}), repeatable=True)
    try:
        reply = yield from exchange_json(attempt.env, request, within=attempt.held.time_left())
        verdict = reply["results"][0]
        if "problem" in verdict:
            raise problem(verdict["status"], verdict["problem"])
        return Settled(verdict["state"])
    except LeaseLost:
        return Settled(None, "the lease was lost")
    except Problem as refused:
        return Settled(None, str(refused))
    except TidegateError as error:
        return Settled(None, str(error))
