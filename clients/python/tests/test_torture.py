"""The deposits application with its capture step in Python, under kills: audited from the gateway's ledger by `tidegate torture`.

Small here. What a run does and what must hold is in docs/reliability/torture.md.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def torture(directory: Path, worker: str, *options: str) -> tuple[int, Any, str]:
    """A run with the captures made by a worker of this package; its exit code, its report, what it said."""
    program = os.environ.get("TIDEGATE_BIN", "")
    assert program, "TIDEGATE_BIN names no program; hint: cargo xtask python"
    command = [program, "torture", "--capture-with", f"'{sys.executable}' -m {worker}", "--lease", "1s", "--json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "PYTHONPATH": f"{ROOT / 'src'}"}
    done = subprocess.run(
        [*command, "--dir", str(directory / "run"), *options],
        cwd=ROOT,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


FEW = ("--kills", "8", "--stops", "2", "--redeploys", "2", "--failpoints", "none")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("gateway", "seed"), [("idempotent", "1"), ("lookup", "2"), ("none", "3")])
def test_captures_in_python_pass_the_audit_of_the_ledger_although_worker_and_server_are_killed(
    tmp_path: Path, gateway: str, seed: str
) -> None:
    code, report, said = torture(tmp_path, "examples.capture", "--gateway", gateway, "--seed", seed, *FEW)
    assert (code, report["pass"]) == (0, True), said
    assert [check["name"] for check in report["checks"] if not check["ok"]] == []
    hurt = report["capture"]
    assert (hurt["kills"], hurt["stops"], hurt["redeploys"]) == (8, 2, 2), hurt
    assert (hurt["server"]["kills"], hurt["server"]["stops"], hurt["server"]["redeploys"]) == (2, 1, 1), hurt
    completed = report["deposits"]["completed"]
    assert report["effects"]["captures"] >= completed > 20, report
    assert report["effects"]["duplicates"] == report["deposits"]["lost"] == 0


@pytest.mark.timeout(180)
def test_a_worker_without_effects_charges_twice_and_is_found(tmp_path: Path) -> None:
    # Long enough for the gateway to lose replies.
    code, report, said = torture(tmp_path, "tests.careless_capture", "--for", "8s", "--failpoints", "none")
    assert (code, report["pass"]) == (1, False), said
    assert "effects" in [check["name"] for check in report["checks"] if not check["ok"]], said
    assert report["effects"]["duplicates"] > 0


@pytest.mark.timeout(120)
def test_no_process_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    worker = f"'{sys.executable}' -m examples.capture"
    command = [os.environ["TIDEGATE_BIN"], "torture", "--capture-with", worker, "--for", "10m", "--lease", "1s"]
    run = tmp_path / "run"
    # By it, its processes are known from others.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT / 'src'}"}
    with subprocess.Popen([*command, "--dir", str(run)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as torture:
        until(lambda: {"serve", "service", "examples.capture"} <= playing(tmp_path))
        torture.kill()
    until(lambda: not playing(tmp_path))


def playing(home: Path) -> set[str]:
    """The words on the command lines of all processes with this home."""
    words: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        # A process may be gone meanwhile; one that is only waited for has no words any more.
        with contextlib.suppress(OSError):
            if f"HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                words.update((process / "cmdline").read_text().split("\0"))
    return words


def until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 45
    while not is_so():
        assert time.monotonic() < give_up_at, "it never came to that"
        time.sleep(0.05)


def test_a_command_that_is_no_worker_is_told(tmp_path: Path) -> None:
    program = os.environ["TIDEGATE_BIN"]
    command = [program, "torture", "--capture-with", "echo hello", "--kills", "1", "--dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert 'said "hello" instead of `working NAME`' in done.stderr, done.stderr
