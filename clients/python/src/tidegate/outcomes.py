"""What a handler raises instead of returning, and what a remote is understood to have answered.

A handler returns its result, or raises :class:`Fail`, :class:`Retry` or :class:`Snooze`; any other exception is one that may
pass. A call of an effect returns what the remote returned, or raises :class:`Rejected`, :class:`NotDone`, :class:`NotFound`
or :class:`Unknown`; any other exception means that nobody knows, because that is the only safe reading.
"""

from __future__ import annotations

from .durations import Duration


class Fail(Exception):
    """Never: a fact of the business. It is the stored answer of the message, and every duplicate gets it."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class Retry(Exception):
    """It may pass: the message comes again with growing pauses, not before ``after``, until its attempts are used up."""

    def __init__(self, code: str, detail: str = "", *, after: Duration | None = None) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
        self.after = after


class Snooze(Exception):
    """Not now: run again after a while. Counts no attempt."""

    def __init__(self, after: Duration) -> None:
        super().__init__(f"again after {after}")
        self.after = after


class Rejected(Fail):
    """The remote said no, finally: a declined card. A handler that lets it pass fails with its code."""


class NotDone(Exception):
    """Certainly nothing happened: the connection was refused, 429. The run ends uncounted, and comes again."""

    def __init__(self, why: str, *, after: Duration | None = None) -> None:
        super().__init__(why)
        self.after = after


class NotFound(Exception):
    """A look-up was answered, and the remote knows nothing under this key. Not for a 404 that any proxy could have made."""


class Unknown(Exception):
    """It may have happened: a time-out, a reset, a reply that cannot be read. What is done about it is the policy's to say."""


class RunEnded(BaseException):
    """This run is over: an effect ended it, or its lease is lost. Let it pass. Swallowed, it changes nothing: what becomes of
    the message is decided already, and further effects are refused."""
