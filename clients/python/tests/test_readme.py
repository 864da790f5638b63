from __future__ import annotations

from pathlib import Path
from typing import Any

from .conftest import RealServer


def test_the_lines_of_the_readme_do_what_it_says(server: RealServer) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    block = readme.split("```python\n")[1].split("```")[0]
    for written, here in (("http://127.0.0.1:7401", server.url), ("timeout=30", "timeout=0.1")):
        assert written in block
        block = block.replace(written, here)
    told: list[Any] = []
    names: dict[str, Any] = {"TOKEN": None, "print": lambda *words: told.extend(words)}
    exec(compile(block, "README.md", "exec"), names)
    assert told == ["ready", None], "nobody runs it here"
