"""Keeps the leases of running attempts, from a thread of its own.

A handler that blocks its event loop, or computes for long, must not lose its lease for it. The thread extends leases when
a third of their time is gone. It stops nobody: whether there is time left is read from the monotonic clock by whoever
wants to go on, counted from before the call that granted the lease, so that a thread that is stuck stops nothing either.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import LeaseLost, TidegateError, problem
from .exchange import encoded, exchange_json
from .steps import Env, Request, Steps

if TYPE_CHECKING:
    from .drivers import Driver

log = logging.getLogger("tidegate.keepalive")


class Stop(enum.Enum):
    """Why an attempt should stop."""

    LEASE_LOST = "somebody else has the message"
    OUT_OF_TIME = "the lease is about to lapse"
    TIMED_OUT = "the handler is over its time"
    DRAINED = "the worker drains"


class Held:
    """The lease of one attempt, kept until it is released."""

    def __init__(self, id: str, token: str, lease: float, sent_at: float, clock: Callable[[], float]) -> None:
        self.id = id
        self.token = token
        self.lease = lease
        #: Monotonic: from here on somebody else may have the message.
        self.lapses_at = sent_at + lease
        #: Its settlement is on its way: an extension behind it would be refused as late.
        self.settling = False
        self.cancel_requested = False
        #: Called from any thread when this should be looked at.
        self.changed: Callable[[], None] = lambda: None
        self._stop: Stop | None = None
        self._clock = clock

    def stop(self, reason: Stop) -> None:
        """The first reason counts, except that losing the lease overrides all others."""
        if self._stop is None or reason is Stop.LEASE_LOST:
            self._stop = reason
            self.changed()

    def stopped(self) -> Stop | None:
        """Why the attempt should stop, if it should: also when its lease is about to lapse."""
        if self._stop is None and self._clock() >= self.gives_up_at():
            return Stop.OUT_OF_TIME
        return self._stop

    def gives_up_at(self) -> float:
        """Monotonic: when the attempt stops unless the lease is extended, a fifth of it before it lapses."""
        return self.lapses_at - self.lease / 5

    def time_left(self) -> float:
        """Seconds until the lease lapses."""
        return max(0.0, self.lapses_at - self._clock())

    def is_due(self) -> bool:
        """Whether it is time to extend. A settlement that takes long still needs its lease."""
        return self.time_left() <= self.lease * (1 / 3 if self.settling else 2 / 3)


def extend(env: Env, held: list[Held], *, alone: bool = False) -> Steps[None]:
    """Extends leases, once: what fails is tried again with the next look."""
    asked_at = env.clock()
    leases = [{"id": one.id, "token": one.token, "lease_ms": round(one.lease * 1000), "alone": alone} for one in held]
    request = Request("POST", "/v1/leases/extend", body=encoded({"leases": leases}))
    reply: Any = yield from exchange_json(env, request, within=0)
    for one, verdict in zip(held, reply["results"]):
        if "problem" not in verdict:
            one.lapses_at = asked_at + verdict["lease_ms"] / 1000
            one.cancel_requested = verdict["cancel_requested"]
            one.changed()
        elif isinstance(problem(verdict["status"], verdict["problem"]), LeaseLost):
            one.stop(Stop.LEASE_LOST)


class Keepalive:
    """Keeps leases until it is closed."""

    def __init__(self, env: Env, driver: Driver, lease: float) -> None:
        self._env = env
        self._driver = driver
        self._held: set[Held] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        # Six looks a lease: one extension may fail and a second still be in time.
        self._tick = lease / 6
        self._thread = threading.Thread(target=self._serve, name="tidegate-keepalive", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Extends nothing more."""
        self._end.set()
        self._thread.join(self._tick)

    def hold(self, held: Held) -> None:
        """Keeps a lease from now on."""
        with self._lock:
            self._held.add(held)

    def release(self, held: Held) -> None:
        """The lease was settled, or is somebody else's."""
        with self._lock:
            self._held.discard(held)

    def stop_all(self, reason: Stop) -> None:
        """Tells all attempts to stop."""
        with self._lock:
            every = list(self._held)
        for held in every:
            held.stop(reason)

    def _serve(self) -> None:
        while not self._end.wait(self._tick):
            with self._lock:
                due = [held for held in self._held if held.is_due()]
            if not due:
                continue
            try:
                self._driver.run(extend(self._env, due))
            except TidegateError as error:
                log.warning("%d leases could not be extended: %s", len(due), error)
            except Exception:
                log.exception("the keepalive met what it does not know; it goes on")
