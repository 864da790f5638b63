"""What a producer and an operator ask of the server, as steps. :mod:`tidegate.client` offers each of these twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Union

from .durations import Duration, moment, ms, seconds
from .errors import Problem
from .exchange import encoded, exchange_json, exchange_verdicts
from .model import TERMINAL, Enqueued, Flow, Message, Page, part
from .steps import Env, Json, Request, Steps

#: The longest that one request waits at the server.
_LONGEST_WAIT = 20.0


@dataclass(frozen=True)
class NewMessage:
    """A message to enqueue with others. The key is no option: it names the one intended effect."""

    kind: str
    payload: Json
    key: str
    queue: str | None = None
    version: int = 1
    priority: int | None = None
    delay: Duration | None = None
    due_at: datetime | None = None
    deadline: datetime | None = None
    max_age: Duration | None = None
    key_time: datetime | None = None
    headers: Mapping[str, str] | None = None

    def wire(self) -> dict[str, Any]:
        """As it is sent. An option that is not given is not sent."""
        options = {
            "version": self.version,
            "priority": self.priority,
            "delay_ms": None if self.delay is None else ms(self.delay),
            "due_at": None if self.due_at is None else moment(self.due_at),
            "deadline": None if self.deadline is None else moment(self.deadline),
            "max_age_ms": None if self.max_age is None else ms(self.max_age),
            "key_time": None if self.key_time is None else moment(self.key_time),
            "headers": None if self.headers is None else dict(self.headers),
        }
        given = {name: value for name, value in options.items() if value is not None}
        return {"queue": self.queue or self.kind, "kind": self.kind, "payload": self.payload, "key": self.key, **given}


def enqueue(
    env: Env,
    kind: str,
    payload: Json,
    *,
    key: str,
    queue: str | None = None,
    version: int = 1,
    priority: int | None = None,
    delay: Duration | None = None,
    due_at: datetime | None = None,
    deadline: datetime | None = None,
    max_age: Duration | None = None,
    key_time: datetime | None = None,
    headers: Mapping[str, str] | None = None,
) -> Steps[Enqueued]:
    """Stores a message; it is durable when this returns.

    ``key`` names the one intended effect, ``deposit-7231``, and is never used for another one: a known key gives the stored
    answer or the state of the known message, and :class:`~tidegate.KeyConflict` with another payload.
    :meth:`tidegate.Key.unique` says that this is new work each time. ``queue``: named like the kind unless given. Sent again
    when the reply is missing: the key makes that safe.
    """
    message = NewMessage(
        kind, payload, key, queue, version, priority, delay, due_at, deadline, max_age, key_time, headers
    ).wire()
    path = f"/v1/queues/{part(message['queue'])}/messages"
    reply = yield from exchange_json(env, Request("POST", path, body=encoded(message), repeatable=True))
    return Enqueued.read(reply)


def enqueue_many(env: Env, messages: Sequence[NewMessage]) -> Steps[list[Union[Enqueued, Problem]]]:
    """Stores many messages in one request; each gets a verdict of its own, a problem where it was refused."""
    body = encoded({"messages": [message.wire() for message in messages]})
    verdicts = yield from exchange_verdicts(env, Request("POST", "/v1/messages", body=body, repeatable=True))
    return [one if isinstance(one, Problem) else Enqueued.read(one) for one in verdicts]


def get(env: Env, id: str, *, reveal: bool = False) -> Steps[Message]:
    """Everything about a message. ``reveal`` shows payload and values to a token that may see them, and is audited."""
    query = {"reveal": "payload"} if reveal else {}
    reply = yield from exchange_json(env, Request("GET", f"/v1/messages/{part(id)}", query=query, repeatable=True))
    return Message.read(reply)


def find(env: Env, queue: str, key: str) -> Steps[Message]:
    """The message of a key."""
    path = f"/v1/queues/{part(queue)}/keys/{part(key)}"
    return Message.read((yield from exchange_json(env, Request("GET", path, repeatable=True))))


def wait(env: Env, id: str, *, timeout: Duration = 30) -> Steps[Message]:
    """A message when it has ended or is parked, or as it is after ``timeout``: then it is pending, and nothing is called off."""
    said = yield from _waited(env, f"/v1/messages/{part(id)}", timeout, lambda said: said["state"] in (*TERMINAL, "parked"))
    return Message.read(said)


def flow(env: Env, id: str, *, timeout: Duration = 0) -> Steps[Flow]:
    """A message with everything that followed from it; with a ``timeout``, when nothing of it is to be run any more."""
    said = yield from _waited(env, f"/v1/flows/{part(id)}", timeout, lambda said: not said["live"])
    return Flow.read(said)


def messages(
    env: Env,
    *,
    queue: str | None = None,
    kind: str | None = None,
    state: str | None = None,
    code: str | None = None,
    after: str | None = None,
    limit: int = 100,
) -> Steps[Page]:
    """Messages by filter, a page at a time."""
    filters = {"queue": queue, "kind": kind, "state": state, "code": code, "after": after, "limit": str(limit)}
    query = {name: value for name, value in filters.items() if value is not None}
    return Page.read((yield from exchange_json(env, Request("GET", "/v1/messages", query=query, repeatable=True))))


def dead(env: Env, *, queue: str | None = None, kind: str | None = None, after: str | None = None, limit: int = 100) -> Steps[Page]:
    """Dead letters: attempts, crash limit or deadline used up."""
    return messages(env, queue=queue, kind=kind, state="dead", after=after, limit=limit)


def parked(env: Env, *, queue: str | None = None, kind: str | None = None, after: str | None = None, limit: int = 100) -> Steps[Page]:
    """Messages with an effect of which nobody knows whether it happened, and which only a person may decide."""
    return messages(env, queue=queue, kind=kind, state="parked", after=after, limit=limit)


def _waited(env: Env, path: str, timeout: Duration, is_over: Any) -> Steps[Any]:
    give_up_at = env.clock() + seconds(timeout)
    while True:
        left = max(0.0, give_up_at - env.clock())
        patience = min(left, _LONGEST_WAIT)
        query = {"wait": f"{ms(patience)}ms"} if patience > 0 else {}
        said = yield from exchange_json(env, Request("GET", path, query=query, repeatable=True, patience=patience))
        if is_over(said) or left <= _LONGEST_WAIT:
            return said
