"""Tidegate from Python: enqueue work that must take effect exactly once, and learn what became of it.

>>> with Client("http://127.0.0.1:7401", token=TOKEN) as tide:
...     sent = tide.enqueue("greet", {"name": "Ada"}, key="greet-ada")
...     print(tide.wait(sent.id).answer.result)

:class:`AsyncClient` is the same with ``await``. :class:`Worker` runs what was enqueued.
"""

from . import http
from .api import NewMessage
from .client import AsyncClient, Client
from .context import AsyncContext, Context
from .effects import AtMostOnce, EffectPolicy, Keyed, Lookup, Natural
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
from .leases import Lease, Policy, Received
from .model import Answer, Enqueued, Flow, Key, Message, Page, Summary
from .outcomes import Fail, NotDone, NotFound, Rejected, Retry, RunEnded, Snooze, Unknown
from .steps import Env, Retries
from .worker import Drained, Worker

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncContext",
    "AtMostOnce",
    "Client",
    "Conflict",
    "Context",
    "Corrupt",
    "Drained",
    "EffectPolicy",
    "Enqueued",
    "Env",
    "Fail",
    "Flow",
    "Forbidden",
    "InFlight",
    "Invalid",
    "Key",
    "KeyConflict",
    "Keyed",
    "Lease",
    "LeaseLost",
    "Lookup",
    "Message",
    "Natural",
    "NewMessage",
    "NoSuchMessage",
    "NotDone",
    "NotFound",
    "Page",
    "Policy",
    "Problem",
    "QueueFull",
    "Received",
    "Rejected",
    "Retries",
    "Retry",
    "RunEnded",
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
    "http",
]
