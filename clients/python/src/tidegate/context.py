"""What a handler gets beside the payload: the message it runs, its effects, and what follows from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from . import effects
from .drivers import AsyncDriver, Driver
from .durations import Duration, moment, ms
from .effects import Effect, EffectPolicy, Run
from .exchange import encoded
from .leases import Received
from .steps import Env, Json

T = TypeVar("T")


class _Context:
    def __init__(self, env: Env, run: Run) -> None:
        self._env = env
        self._run = run

    @property
    def message(self) -> Received:
        """The message that is run."""
        return self._run.lease.message

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._run.lease.attempt

    @property
    def reconciling(self) -> bool:
        """Whether this run is to clear up an effect whose answer is missing."""
        return self._run.lease.reconciling

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked to cancel the message. Completing all the same is fine."""
        return self._run.held.cancel_requested

    @property
    def stopping(self) -> str | None:
        """Why this run should stop, if it should: its lease is lost, its time is over, the worker stops. Effects are refused
        from then on; a handler that blocks for long looks here now and then."""
        stopped = self._run.held.stopped
        return None if stopped is None else stopped.value

    def then(
        self,
        kind: str,
        payload: Json,
        *,
        queue: str | None = None,
        item: str | None = None,
        version: int = 1,
        priority: int | None = None,
        delay: Duration | None = None,
        due_at: datetime | None = None,
        deadline: datetime | None = None,
        max_age: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A message that follows, in the same commit, if this one completes. Its key is made from this message, its kind and
        its ``item``, which tells several of one kind apart: it follows once, however often this message is run."""
        follow_up = _follow_up(kind, payload, queue, item, version, priority, delay, due_at, deadline, max_age, headers)
        self._run.then.append(follow_up)

    def compensate(
        self,
        kind: str,
        payload: Json,
        *,
        queue: str | None = None,
        item: str | None = None,
        version: int = 1,
        priority: int | None = None,
        delay: Duration | None = None,
        due_at: datetime | None = None,
        deadline: datetime | None = None,
        max_age: Duration | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """A message that follows if this one fails for ever or is given up: it takes back what was done."""
        follow_up = _follow_up(kind, payload, queue, item, version, priority, delay, due_at, deadline, max_age, headers)
        self._run.compensate.append(follow_up)


class Context(_Context):
    """For a handler that blocks."""

    def __init__(self, env: Env, run: Run, driver: Driver) -> None:
        super().__init__(env, run)
        self._driver = driver

    def effect(
        self,
        name: str,
        *,
        policy: EffectPolicy,
        send: Callable[[str], T],
        look_up: Callable[[str], T] | None = None,
        item: str | None = None,
        request: Json = None,
        send_within: Duration = 30,
        reconcile_for: Duration | None = None,
    ) -> T:
        """Makes an external side effect, or replays what is known of it. The intent is durable before ``send`` is called.

        ``send`` gets the key to send, the same in every run and process; it returns what a later step needs of the answer, as
        JSON can say it, or raises :class:`~tidegate.Rejected` or :class:`~tidegate.NotDone`. Any other exception means that
        nobody knows. It sends once, and its own time-out is shorter than ``send_within``: it cannot be interrupted.
        ``look_up`` gets the same key, and returns what ``send`` would have, or raises :class:`~tidegate.NotFound`.
        ``policy`` says what may be done when the answer is missing. ``request``: what is asked of the remote, if it is not
        the payload; another request under an open effect is another effect, and waits for a person.

        Raises :class:`~tidegate.Rejected`, which fails the message if it passes; anything else ends the run.
        """
        effect = Effect(name, policy, send, look_up, item, request, send_within, reconcile_for)
        value: T = self._driver.run(effects.make(self._env, self._run, effect))
        return value


class AsyncContext(_Context):
    """For a handler that awaits."""

    def __init__(self, env: Env, run: Run, driver: AsyncDriver) -> None:
        super().__init__(env, run)
        self._driver = driver

    async def effect(
        self,
        name: str,
        *,
        policy: EffectPolicy,
        send: Callable[[str], Awaitable[T]],
        look_up: Callable[[str], Awaitable[T]] | None = None,
        item: str | None = None,
        request: Json = None,
        send_within: Duration = 30,
        reconcile_for: Duration | None = None,
    ) -> T:
        """As :meth:`Context.effect`, awaited; a ``send`` that takes longer than ``send_within`` is cancelled, and its answer
        unknown."""
        effect = Effect(name, policy, send, look_up, item, request, send_within, reconcile_for)
        value: T = await self._driver.run(effects.make(self._env, self._run, effect))
        return value


def _follow_up(
    kind: str,
    payload: Json,
    queue: str | None,
    item: str | None,
    version: int,
    priority: int | None,
    delay: Duration | None,
    due_at: datetime | None,
    deadline: datetime | None,
    max_age: Duration | None,
    headers: Mapping[str, str] | None,
) -> dict[str, Any]:
    options = {
        "item": item,
        "version": version,
        "priority": priority,
        "delay_ms": None if delay is None else ms(delay),
        "due_at": None if due_at is None else moment(due_at),
        "deadline": None if deadline is None else moment(deadline),
        "max_age_ms": None if max_age is None else ms(max_age),
        "headers": None if headers is None else dict(headers),
    }
    given = {name: value for name, value in options.items() if value is not None}
    follow_up = {"queue": queue or kind, "kind": kind, "payload": payload, **given}
    # What JSON cannot say is told where it was said.
    encoded(follow_up)
    return follow_up
