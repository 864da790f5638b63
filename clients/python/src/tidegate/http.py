"""What an HTTP answer says about an effect: classifiers for the function that makes a call.

=====================================================================================  =====================================
answer                                                                                 verdict
=====================================================================================  =====================================
2xx                                                                                    success: read the body and confirm
400 402 404 405 406 410 411 413 414 415 416 417 421 422 424 426 428 431 451            rejected, ``http_402``
401 403 407 (our credentials: mending them mends it), 425 429                          not done, ``Retry-After`` obeyed
503 with ``Retry-After``                                                               not done, ``Retry-After`` obeyed
408 409 423, 503 without, other 4xx and 5xx, 1xx, 3xx                                  unknown
no connection was made                                                                 not done
any other error of the HTTP client                                                     unknown
=====================================================================================  =====================================

A gateway that promises less, or more, is classified by its author: match on the status first. Switch the retries of your
HTTP client off: it would send what the journal knows nothing about.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx

from .effects import NotDone, Rejected, Unknown

_NOT_DONE = {401, 403, 407, 425, 429}
_REJECTED = {400, 402, 404, 405, 406, 410, 411, 413, 414, 415, 416, 417, 421, 422, 424, 426, 428, 431, 451}


def classify(status: int, headers: Mapping[str, str], detail: str = "") -> Rejected | NotDone | Unknown | None:
    """What a status and its headers say. ``None`` is success: what happened is in the body."""
    after = retry_after(headers)
    if 200 <= status < 300:
        return None
    if status in _NOT_DONE or (status == 503 and after is not None):
        return NotDone(f"answered {status}", after)
    if status in _REJECTED:
        return Rejected(f"http_{status}", detail)
    return Unknown(f"answered {status}")


def of_httpx_error(error: httpx.HTTPError) -> NotDone | Unknown:
    """A request of ``httpx`` that got no whole answer: only a connection that was never made is *not done*."""
    why = f"{type(error).__name__}: {error}"
    never_left = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
    return NotDone(why) if never_left else Unknown(why)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The pause a server asked for, in seconds: whole seconds, or the time until an HTTP date."""
    text = next((value.strip() for name, value in headers.items() if name.lower() == "retry-after"), None)
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=timezone.utc)
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds())
