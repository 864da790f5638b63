"""Keeps the leases of what runs, on a thread of its own, so that no handler can block it.

It extends a lease when a third of its time is gone, tells a run that its lease was lost, and, when the server cannot be
reached, stops it *before* its lease can lapse: that deadline is monotonic and counted from before the request that granted it.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Sequence

from . import leases
from .drivers import Driver
from .errors import LeaseLost, NoSuchMessage, TidegateError
from .leases import Lease
from .steps import Env

log = logging.getLogger("tidegate.worker")

#: So many leases are extended by one request.
_BATCH = 500


class Stopped(enum.Enum):
    """Why a run should stop."""

    LEASE_LOST = "somebody else has the message by now"
    OUT_OF_TIME = "the lease could not be extended: the server did not answer in time"
    TIMED_OUT = "the handler did not end in time"
    DRAINED = "the worker stops"


class Held:
    """The lease of one run, until it is released."""

    def __init__(self, lease: Lease, duration: float, sent_at: float) -> None:
        self.lease = lease
        self.duration = duration
        #: From here on somebody else may have the message, by the monotonic clock.
        self.lapses_at = sent_at + duration
        self.stopped: Stopped | None = None
        #: Whether somebody asked to cancel the message. No reason to drop what is under way.
        self.cancel_requested = False
        self._lock = threading.Lock()
        self._told: list[Callable[[], None]] = []

    def stop(self, reason: Stopped) -> None:
        """Says that the run should stop. The first reason counts, but losing the lease overrides all others."""
        with self._lock:
            if self.stopped is not None and reason is not Stopped.LEASE_LOST:
                return
            self.stopped = reason
            told = list(self._told)
        for tell in told:
            tell()

    def on_stop(self, tell: Callable[[], None]) -> None:
        """Calls ``tell``, on any thread, when the run should stop; at once if it should already."""
        with self._lock:
            self._told.append(tell)
            is_stopped = self.stopped is not None
        if is_stopped:
            tell()

    def is_due(self, now: float) -> bool:
        """Whether a third of its time is gone."""
        return self.lapses_at - now <= self.duration * 2 / 3

    def left(self, now: float) -> float:
        """For how long it certainly holds."""
        return max(0.0, self.lapses_at - now)


class Keepalive:
    """Extends leases until it is closed."""

    def __init__(self, env: Env, driver: Driver, duration: float) -> None:
        self._env = env
        self._driver = driver
        self._duration = duration
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="tide-keepalive", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, and waits for that."""
        self._end.set()
        self._thread.join()

    def hold(self, lease: Lease, sent_at: float) -> Held:
        """Keeps a lease that was granted by a request first sent at this time."""
        held = Held(lease, self._duration, sent_at)
        with self._lock:
            self._held[lease.token + lease.message.id] = held
        return held

    def release(self, held: Held) -> None:
        """It was settled, or is somebody else's."""
        with self._lock:
            self._held.pop(held.lease.token + held.lease.message.id, None)

    def all(self) -> list[Held]:
        """What is kept."""
        with self._lock:
            return list(self._held.values())

    def stop_all(self, reason: Stopped) -> None:
        """Says to all runs that they should stop."""
        for held in self.all():
            held.stop(reason)

    def _serve(self) -> None:
        # Six looks a lease: one extension may fail and a second still be in time.
        while not self._end.wait(self._duration / 6):
            self.tick()

    def tick(self) -> None:
        """One look at all leases."""
        self._watch_deadlines()
        now = self._env.clock()
        due = [held for held in self.all() if held.is_due(now) and held.stopped is not Stopped.LEASE_LOST]
        for start in range(0, len(due), _BATCH):
            self._extend(due[start : start + _BATCH])
        self._watch_deadlines()

    def _extend(self, due: Sequence[Held]) -> None:
        sent_at = self._env.clock()
        try:
            verdicts = self._driver.run(leases.extend(self._env, [held.lease for held in due], self._duration))
        except TidegateError as error:
            # Not the end: the deadlines are watched, and the next tick tries again.
            log.warning("could not extend %d leases: %s", len(due), error)
            return
        for held, verdict in zip(due, verdicts):
            if isinstance(verdict, bool):
                held.lapses_at = sent_at + self._duration
                held.cancel_requested = held.cancel_requested or verdict
            elif isinstance(verdict, (LeaseLost, NoSuchMessage)):
                held.stop(Stopped.LEASE_LOST)
            else:
                log.warning("could not extend the lease of message %s: %s", held.lease.message.id, verdict)

    def _watch_deadlines(self) -> None:
        now = self._env.clock()
        for held in self.all():
            if now + self._duration / 5 >= held.lapses_at:
                held.stop(Stopped.OUT_OF_TIME)
