"""What can go wrong, as exceptions. Each says whether coming again may help, and when.

The server answers errors as ``application/problem+json``; the class is chosen by the problem's type, so that ``except
KeyConflict`` means one thing whatever the status. Details never contain payloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .steps import Reply


class TidegateError(Exception):
    """Any error of this library."""

    #: Whether the same call may succeed later.
    retryable: bool = False
    #: The earliest useful moment, in seconds from now, if the server named one.
    retry_after: float | None = None
    #: Whether the request, or an earlier try of it whose reply is missing, may have been done all the same. A refusal that
    #: answers a repetition, of the whole request or of one item, may be because of that: look where the message stands.
    maybe_done: bool = False


class Unreachable(TidegateError):
    """No reply, or none that could be read. ``maybe_done`` is false only if no try of the request certainly ever left."""

    retryable = True

    def __init__(self, why: str, *, maybe_done: bool) -> None:
        super().__init__(why)
        self.maybe_done = maybe_done


#: What is refused for what it says, or for what is not there, was refused the first time as well.
_REFUSED_EACH_TIME = frozenset({400, 404, 405, 413, 415, 422, 431})


class Problem(TidegateError):
    """The server said no, and why."""

    def __init__(self, status: int, said: Mapping[str, Any], retry_after: float | None = None) -> None:
        self.status = status
        #: The last part of the problem's type, ``key-conflict``; the server has a page about it at ``type``.
        self.slug = str(said.get("type", "")).rsplit("/", 1)[-1]
        self.type = str(said.get("type", "about:blank"))
        self.title = str(said.get("title", ""))
        self.detail = str(said.get("detail", ""))
        #: What to do about it.
        self.fix = str(said.get("fix", ""))
        #: All members of the problem.
        self.said = dict(said)
        self.retryable = bool(said.get("retryable", status in (429, 502, 503, 504)))
        after = said.get("retry_after_s")
        self.retry_after = retry_after if after is None else float(after)
        what = self.detail or self.title or "no problem document"
        super().__init__(f"{status} {self.slug or 'error'}: {what}" + (f"\nhint: {self.fix}" if self.fix else ""))

    @property
    def leaves_open(self) -> bool:
        """Whether it does not say what became of the request: it may be done, or under way, here or behind what answered."""
        # A server that is busy says so before it looks at a request.
        return self.status >= 500 and self.slug != "busy"

    def of_a_write(self, *, repeated: bool) -> None:
        """It answers a request that would change something. ``repeated``: an earlier try of it may have been done."""
        if repeated and self.status not in _REFUSED_EACH_TIME:
            self.maybe_done = True
            self.args = (f"{self.args[0]}\nwhether an earlier try was done is not known",)
        elif self.leaves_open:
            self.maybe_done = True


class Invalid(Problem):
    """The request itself is wrong: it can never succeed."""


class Unauthorized(Problem):
    """No token, or one that is not valid."""


class Forbidden(Problem):
    """The token does not allow this."""


class NoSuchMessage(Problem):
    """Nothing of that name, or nothing that this token may see."""


class KeyConflict(Problem):
    """The idempotency key is known with another payload."""


class Conflict(Problem):
    """What is stored forbids it."""


class StaleKey(Conflict):
    """The key is unknown and older than the retention: it may have been done and forgotten, so it was not begun."""


class InFlight(Conflict):
    """Another request with this key is being accepted at this moment."""


class LeaseLost(Conflict):
    """Somebody else has the message by now: nothing that is done for it under this lease counts any more."""


class QueueFull(Problem):
    """The queue is at its limit."""


class TooManyRequests(Problem):
    """This client sends more than it may."""


class Unavailable(Problem):
    """The server cannot serve now. A write may have been carried out all the same."""


class Corrupt(Problem):
    """The store refused to serve what it cannot trust."""


#: Types of problems that are an exception of their own. All others go by their status.
_BY_SLUG: dict[str, type[Problem]] = {
    "key-conflict": KeyConflict,
    "stale-key": StaleKey,
    "in-flight": InFlight,
    "lease-lost": LeaseLost,
    "queue-full": QueueFull,
    "corrupt": Corrupt,
}

_BY_STATUS: dict[int, type[Problem]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NoSuchMessage,
    405: Invalid,
    409: Conflict,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: TooManyRequests,
    431: Invalid,
    503: Unavailable,
}


def problem(status: int, said: Mapping[str, Any], retry_after: float | None = None) -> Problem:
    """The exception for a problem document."""
    slug = str(said.get("type", "")).rsplit("/", 1)[-1]
    return _BY_SLUG.get(slug, _BY_STATUS.get(status, Problem))(status, said, retry_after)


def problem_of(reply: Reply) -> Problem:
    """The exception for a reply that is an error; also for one that no server of ours made."""
    try:
        said = json.loads(reply.body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        said = {"title": f"HTTP {reply.status} without a problem document"}
    return problem(reply.status, said, _seconds(reply.headers.get("retry-after")))


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text is not None else None
    except ValueError:
        return None
