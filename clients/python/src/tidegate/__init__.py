"""Tidegate from Python: enqueue work that must take effect exactly once, and run it.

>>> with Client("http://127.0.0.1:8181", token=TOKEN) as tide:
...     sent = tide.enqueue("greet", {"name": "Ada"}, key="greet-ada")
...     print(tide.wait(sent.id).answer.result)

A producer needs :class:`Client` or :class:`AsyncClient`; whoever runs messages needs :class:`Worker`.
"""

from .api import NewMessage
from .attempt import AsyncContext, Context, Permanent, Retryable, Snooze
from .client import AsyncClient, Client
from .durations import DAY
from .effects import (
    AsyncEffect,
    AttemptEnded,
    Confirmed,
    Effect,
    EffectKey,
    NotDone,
    NotFound,
    Rejected,
    Rejection,
    Unknown,
)
from .errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InFlight,
    Invalid,
    KeyConflict,
    LeaseLost,
    NoSuchMessage,
    Problem,
    QueueFull,
    StaleKey,
    TidegateError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from .model import Answer, Enqueued, Flow, Key, Message, Page, Summary
from .steps import Env, Retries
from .worker import Drained, Policy, Worker

__version__ = "0.1.0"

__all__ = [
    "DAY",
    "Answer",
    "AsyncClient",
    "AsyncContext",
    "AsyncEffect",
    "AttemptEnded",
    "Client",
    "Confirmed",
    "Conflict",
    "Context",
    "Corrupt",
    "Drained",
    "Effect",
    "EffectKey",
    "Enqueued",
    "Env",
    "Flow",
    "Forbidden",
    "InFlight",
    "Invalid",
    "Key",
    "KeyConflict",
    "LeaseLost",
    "Message",
    "NewMessage",
    "NoSuchMessage",
    "NotDone",
    "NotFound",
    "Page",
    "Permanent",
    "Policy",
    "Problem",
    "QueueFull",
    "Rejected",
    "Rejection",
    "Retries",
    "Retryable",
    "Snooze",
    "StaleKey",
    "Summary",
    "TidegateError",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unknown",
    "Unreachable",
    "Worker",
]
