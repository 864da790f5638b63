"""A server of the program that was built: `TIDEGATE_BIN`, which `cargo xtask python` sets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class RealServer:
    """`tidegate serve` on a store of its own, at a port that it finds itself and keeps when it is started again."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.program = os.environ.get("TIDEGATE_BIN", "")
        assert self.program, "TIDEGATE_BIN names no program; hint: cargo xtask python"
        self.store = directory / "tidegate.db"
        self.listen = "127.0.0.1:0"
        self.options = options
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        # No settings of whoever runs the tests.
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "TIDEGATE_LOG_FORMAT": "text",
        }

    def start(self) -> RealServer:
        command = [self.program, "--store", str(self.store), "serve", "--listen", self.listen, *self.options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment
        )
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            # A line of its own, or in a log that is JSON.
            listening = re.search(r" on (http://[0-9.:]+)", line)
            if listening is not None:
                self.url = listening[1]
                self.listen = self.url.removeprefix("http://")
                # Whatever else it says must not fill the pipe.
                threading.Thread(target=self._process.stdout.read, daemon=True).start()
                return self
        raise AssertionError(f"the server said where it listens nowhere: {''.join(lines)}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(30)

    def command(self, *arguments: str) -> str:
        command = [self.program, "--store", str(self.store), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment, timeout=30, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    running = RealServer(tmp_path).start()
    yield running
    running.end(signal.SIGKILL)
