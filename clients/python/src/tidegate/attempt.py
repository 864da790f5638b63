"""How a run ended, and how that is reported. It decides nothing about the message: the server does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Union

from .durations import ms
from .effects import Run, why
from .exchange import encoded
from .keepalive import Stopped
from .outcomes import Fail, Retry, RunEnded, Snooze


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
    """The payload did not decode."""

    error: Exception


Ran = Union[Returned, Raised, Undecodable]


def settlement(run: Run, ran: Ran) -> dict[str, Any] | None:
    """What is reported. ``None``: nothing, because somebody else has the message."""
    if run.held.stopped is Stopped.LEASE_LOST:
        return None
    # What an effect ended stays ended, whatever the handler made of it.
    outcome = run.ended or _outcome(run.held.stopped, ran)
    more = {"journal": run.journal, "then": run.then, "compensate": run.compensate}
    return {**outcome, **{name: all for name, all in more.items() if all}}


def _outcome(stopped: Stopped | None, ran: Ran) -> dict[str, Any]:
    if isinstance(ran, Undecodable):
        return _failed("undecodable", "decode", why(ran.error))
    if isinstance(ran, Returned):
        return _completed(ran.value)
    error = ran.error
    if isinstance(error, Fail):
        return _failed("permanent", error.code, error.detail)
    if isinstance(error, Retry):
        after = {} if error.after is None else {"after_ms": ms(error.after)}
        return {**_failed("retryable", error.code, error.detail), **after}
    if isinstance(error, Snooze):
        return {"outcome": "snooze", "after_ms": ms(error.after)}
    # Stopped, it may raise whatever it likes: it was this that ended it.
    if stopped is Stopped.DRAINED:
        return {"outcome": "released"}
    if stopped is Stopped.TIMED_OUT:
        return _failed("retryable", "timeout", stopped.value)
    if stopped is Stopped.OUT_OF_TIME:
        return _failed("retryable", "lease", stopped.value)
    if isinstance(error, (RunEnded, asyncio.CancelledError)):
        return _failed("retryable", "error", "the handler was cancelled by something else than its worker")
    return _failed("retryable", "error", why(error))


def _completed(value: Any) -> dict[str, Any]:
    try:
        encoded(value)
    except (TypeError, ValueError) as error:
        return _failed("refused", "result", f"the result does not serialise to JSON: {error}")
    return {"outcome": "completed", "result": value}


def _failed(outcome: str, code: str, detail: str) -> dict[str, Any]:
    return {"outcome": outcome, "code": code or "error", "detail": detail}
