"""What the server says, as values: a message, the verdict on an enqueue, a flow.

Each keeps what was said in ``said``, so that a member a later server adds can be read before this library knows it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from .durations import moment_of

#: States in which a message stays unless a person acts.
TERMINAL = frozenset({"completed", "failed", "dead", "cancelled"})


def part(text: str) -> str:
    """A name as a part of a path."""
    return quote(text, safe="")


class Key(str):
    """An idempotency key: names one intended effect, for ever. Any string does; this class is for :meth:`unique`."""

    @classmethod
    def unique(cls) -> Key:
        """A key that nobody else has: this enqueue is new work each time, and is not deduplicated against a repeat that your
        own program makes. (A repeat that this library makes of one call is.)"""
        return cls(f"unique-{secrets.token_hex(16)}")


@dataclass(frozen=True)
class Answer:
    """What a message came to, kept for whoever asks: a result, or the failure that the handler stated."""

    completed: bool
    #: What the handler returned; none if it is not shown to this token.
    result: Any = None
    code: str = ""
    detail: str = ""

    @classmethod
    def read(cls, said: Mapping[str, Any] | None) -> Answer | None:
        """From the wire."""
        if said is None:
            return None
        if "failure" in said:
            return cls(False, None, said["failure"]["code"], said["failure"]["detail"])
        return cls(True, said["result"])


@dataclass(frozen=True)
class Enqueued:
    """The verdict on an enqueue: ``added``, ``known`` (the key has no answer yet) or ``replayed`` (here is its answer)."""

    id: str
    result: str
    state: str
    #: Options of this call that were ignored because the first ones count.
    ignored: tuple[str, ...] = ()
    answer: Answer | None = None

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Enqueued:
        """From the wire."""
        answer = Answer.read(said.get("answer"))
        return cls(said["id"], said["result"], said["state"], tuple(said.get("ignored", ())), answer)


@dataclass(frozen=True)
class Summary:
    """A message in a list."""

    id: str
    queue: str
    kind: str
    key: str
    state: str
    attempt: int
    flow: str
    code: str | None
    detail: str | None
    enqueued_at: datetime | None
    due_at: datetime | None
    ended_at: datetime | None
    said: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Summary:
        """From the wire."""
        return cls(
            id=said["id"],
            queue=said["queue"],
            kind=said["kind"],
            key=said["key"],
            state=said["state"],
            attempt=said["attempt"],
            flow=said["flow"],
            code=said.get("code"),
            detail=said.get("detail"),
            enqueued_at=moment_of(said.get("enqueued_at")),
            due_at=moment_of(said.get("due_at")),
            ended_at=moment_of(said.get("ended_at")),
            said=said,
        )


@dataclass(frozen=True)
class Message:
    """Everything about one message that is shown to this token."""

    id: str
    queue: str
    kind: str
    key: str
    state: str
    #: Why it is dead or parked.
    reason: str | None
    attempt: int
    flow: str
    #: What it came to, if it completed or failed.
    answer: Answer | None
    #: Its effects, newest last.
    journal: tuple[Mapping[str, Any], ...]
    #: Runs that ended otherwise than completed, and what operators did.
    history: tuple[Mapping[str, Any], ...]
    said: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Message:
        """From the wire."""
        return cls(
            id=said["id"],
            queue=said["queue"],
            kind=said["kind"],
            key=said["key"],
            state=said["state"],
            reason=said.get("reason"),
            attempt=said["attempt"],
            flow=said["flow"],
            answer=Answer.read(said.get("answer")),
            journal=tuple(said.get("journal", ())),
            history=tuple(said.get("history", ())),
            said=said,
        )

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be run, or waits for a person to say what became of an effect."""
        return self.state not in TERMINAL


@dataclass(frozen=True)
class Flow:
    """A message and everything that followed from it."""

    id: str
    #: Whether anything of it is still to be run.
    live: bool
    #: Whether every message of it completed.
    completed: bool
    #: The first message that did not complete and is not under way.
    stopped_at: str | None
    messages: tuple[Summary, ...]

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Flow:
        """From the wire."""
        messages = tuple(Summary.read(one) for one in said["messages"])
        return cls(said["id"], said["live"], said["completed"], said.get("stopped_at"), messages)


@dataclass(frozen=True)
class Page:
    """Messages, and where the next page begins; none when this was the last."""

    messages: tuple[Summary, ...]
    next: str | None

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Page:
        """From the wire."""
        return cls(tuple(Summary.read(one) for one in said["messages"]), said.get("next"))
