"""What an HTTP answer says about an effect: for the ``send`` of ``ctx.effect``, with ``httpx``.

=========================================================  ==================================================
answer                                                     means
=========================================================  ==================================================
2xx                                                        it happened: returned
400 402 404–406 410 411 413–417 421 422 424 426 428 431    :class:`Rejected`, ``http_402``: looked at and refused
451
401 403 407                                                :class:`NotDone`: our credentials are wrong
425 429, 503 with ``Retry-After``                          :class:`NotDone`, not before that
everything else                                            :class:`Unknown`: it may be under way or done
no connection                                              :class:`NotDone`
any other error                                            :class:`Unknown`
=========================================================  ==================================================

A gateway that promises less, or more, is classified by its author: :func:`answered`, then look at the status, then
:func:`judged`.

For sends only. In a ``look_up`` a refusal speaks of the question and not of the effect: a 404 would end it as
:class:`Rejected`, finally, although it may have happened. There, raise ``NotFound`` for the one answer that says so, and
leave every other error to ``raise_for_status``: nobody knows.
"""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from .drivers import NEVER_LEFT
from .outcomes import NotDone, Rejected, Unknown

_REFUSED = {400, 402, 404, 405, 406, 410, 411, *range(413, 418), 421, 422, 424, 426, 428, 431, 451}
_NOT_LOOKED_AT = {401, 403, 407, 425, 429}


def send(client: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """One request, and its answer if it happened; otherwise what else it means is raised. Not for a ``look_up``."""
    return judged(answered(client, method, url, **options))


async def asend(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """As :func:`send`, awaited."""
    return judged(await aanswered(client, method, url, **options))


def answered(client: httpx.Client, method: str, url: str, **options: Any) -> httpx.Response:
    """One request, and its answer whatever that says; what a missing one means is raised. For a gateway that says more than
    its status: look at that first, and leave the rest to :func:`judged`."""
    try:
        return client.request(method, url, **options)
    except httpx.HTTPError as error:
        raise _no_answer(error) from error


async def aanswered(client: httpx.AsyncClient, method: str, url: str, **options: Any) -> httpx.Response:
    """As :func:`answered`, awaited."""
    try:
        return await client.request(method, url, **options)
    except httpx.HTTPError as error:
        raise _no_answer(error) from error


def judged(response: httpx.Response) -> httpx.Response:
    """The answer if it happened; otherwise what else it means is raised. Not for a ``look_up``."""
    status = response.status_code
    what, after = f"answered {status} {response.reason_phrase}".rstrip(), _retry_after(response)
    if 200 <= status < 300:
        return response
    if status in _REFUSED:
        raise Rejected(f"http_{status}", what)
    if status in _NOT_LOOKED_AT or (status == 503 and after is not None):
        raise NotDone(what, after=after)
    raise Unknown(what)


def _no_answer(error: httpx.HTTPError) -> Exception:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return NotDone(what) if isinstance(error, NEVER_LEFT) else Unknown(what)


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, (at - datetime.now(timezone.utc)).total_seconds()) if at.tzinfo is not None else None
