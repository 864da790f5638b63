from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tidegate import Client

from .conftest import RealServer
from .gateway import Gateway, running


def block(number: int, **here: str) -> Any:
    """A block of the readme, with what is different here."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    text = readme.split("```python\n")[number].split("```")[0]
    for written, instead in here.items():
        written = {"server": "http://127.0.0.1:7401", "gateway": "http://127.0.0.1:8080", "wait": "timeout=30"}[written]
        assert written in text
        text = text.replace(written, instead)
    return compile(text, "README.md", "exec")


def test_the_lines_of_the_readme_do_what_it_says(server: RealServer) -> None:
    told: list[Any] = []
    names: dict[str, Any] = {"TOKEN": None, "print": lambda *words: told.extend(words)}
    exec(block(1, server=server.url, wait="timeout=0.1"), names)
    assert told == ["ready", None], "nobody runs it here"


def test_the_worker_of_the_readme_captures_once_although_the_reply_is_lost(server: RealServer) -> None:
    lost = Gateway(recognises_keys=True, fault=lambda operation, key, nth: "" if nth else "lost")
    with running(lost) as gateway, Client(server.url) as tide:
        names: dict[str, Any] = {"TOKEN": None}
        code = block(2, server=server.url, gateway=gateway.url)
        thread = threading.Thread(target=exec, args=(code, names), daemon=True)
        thread.start()
        sent = tide.enqueue("capture", {"deposit": "dep-1", "cents": 100}, key="dep-1")
        assert tide.wait(sent.id, timeout=30).state == "completed"
        names["worker"].stop()
        thread.join(30)
        assert not thread.is_alive()
        assert [entry.deposit for entry in gateway.ledger] == ["dep-1"]
        assert sum(gateway.asked.values()) == 2
        follow_up = tide.get(tide.flow(sent.id).messages[1].id, reveal=True)
        assert (follow_up.queue, follow_up.said["payload"]) == ("credit", {"deposit": "dep-1", "charge": "capture-0"})


def test_a_block_that_is_not_there_is_no_test() -> None:
    with pytest.raises(IndexError):
        block(3)
