"""Times: seconds or a ``timedelta`` where a person writes a duration, whole milliseconds on the wire; moments in UTC."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Union

#: Seconds, or a ``timedelta``.
Duration = Union[int, float, timedelta]


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


def ms(duration: Duration) -> int:
    """A duration in whole milliseconds."""
    return round(seconds(duration) * 1000)


def moment(at: datetime) -> str:
    """A moment on the wire. One without a time zone is refused: it names another moment on every machine."""
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()} has no time zone; hint: datetime.now(timezone.utc)")
    return at.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str | None) -> datetime | None:
    """A moment from the wire."""
    return None if text is None else datetime.fromisoformat(text.replace("Z", "+00:00"))
