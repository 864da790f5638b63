"""The protocol without I/O: a *step* is what has to be done next, and whoever drives does it.

Everything that decides something (what to send, when to repeat it, what an answer means) is a generator that yields
steps and is sent their answers. :mod:`tidegate.client` has the two drivers, one that blocks and one that awaits; neither
decides anything, so that sync and async cannot differ, and a test can play the server with a list.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union

T = TypeVar("T")

#: What JSON can say.
Json = Union[None, bool, int, float, str, "list[Json]", "tuple[Json, ...]", "Mapping[str, Json]"]


@dataclass(frozen=True)
class Request:
    """One HTTP request. ``repeatable`` says that sending it twice does no more than sending it once."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False
    #: Makes what is sent instead when it is sent again.
    again: Callable[[], bytes] | None = None
    #: How long the server may take on purpose, in seconds; the client's own time-out comes on top.
    patience: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What came back, read whole. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Pause:
    """Nothing, for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ask:
    """A function of the application. One that is awaited is given up after ``within`` seconds; one that blocks cannot be."""

    function: Callable[[str], Any]
    key: str
    within: float


class NoReply(Exception):
    """A request got no whole reply. ``left`` is false only if it certainly never left."""

    def __init__(self, why: str, *, left: bool) -> None:
        super().__init__(why)
        self.left = left


Step = Union[Request, Pause, Ask]
#: A course of steps that ends in a ``T``.
Steps = Generator[Step, Any, T]


def send(request: Request) -> Steps[Reply]:
    """Sends once. Raises :class:`NoReply`."""
    reply = yield request
    assert isinstance(reply, Reply)
    return reply


def pause(seconds: float) -> Steps[None]:
    """Waits."""
    yield Pause(seconds)


@dataclass(frozen=True)
class Retries:
    """How a repeatable request is repeated: pauses grow from ``base`` to ``cap`` seconds, each drawn from the whole range
    below (full jitter), on top of what ``Retry-After`` asks for; nothing is begun again after ``within`` seconds."""

    within: float = 30.0
    base: float = 0.1
    cap: float = 5.0

    def pause(self, attempt: int, floor: float, unit: float) -> float:
        """The pause after this attempt, from 1."""
        doublings: int = min(attempt - 1, 30)
        return floor + min(self.cap, self.base * float(2**doublings)) * unit


@dataclass(frozen=True)
class Env:
    """Time and chance, passed in so that a test can be exact."""

    retries: Retries = Retries()
    #: Seconds, monotonic.
    clock: Callable[[], float] = time.monotonic
    #: Uniform in 0..1.
    unit: Callable[[], float] = random.random
