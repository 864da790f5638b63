"""Tidegate from Python: enqueue work that must take effect exactly once, and learn what became of it.

>>> with Client("http://127.0.0.1:7401", token=TOKEN) as tide:
...     sent = tide.enqueue("greet", {"name": "Ada"}, key="greet-ada")
...     print(tide.wait(sent.id).answer.result)

:class:`AsyncClient` is the same with ``await``.
"""

from .api import NewMessage
from .client import AsyncClient, Client
from .errors import (
    Conflict,
    Corrupt,
    Forbidden,
    InFlight,
    Invalid,
    KeyConflict,
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

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "Conflict",
    "Corrupt",
    "Enqueued",
    "Env",
    "Flow",
    "Forbidden",
    "InFlight",
    "Invalid",
    "Key",
    "KeyConflict",
    "Message",
    "NewMessage",
    "NoSuchMessage",
    "Page",
    "Problem",
    "QueueFull",
    "Retries",
    "StaleKey",
    "Summary",
    "TidegateError",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "Unreachable",
]
