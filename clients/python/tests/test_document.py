"""The OpenAPI document against the server that serves it: requests made from the one, answers judged by the other.

What a schema cannot say (a key is in a header or in the body; a batch answers 200 with a refusal for each item) is not asked.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import RealServer

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[RealServer]:
    # A claim that is made up waits for what nobody enqueues.
    running = RealServer(tmp_path, "--set", "limits.wait=100ms").start()
    yield running
    running.end(signal.SIGKILL)


@pytest.mark.timeout(120)
def test_the_server_does_what_its_document_says(impatient: RealServer, tmp_path: Path) -> None:
    examples = os.environ.get("TIDEGATE_SCHEMA_EXAMPLES", "5")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{impatient.url}/openapi.json", "--checks", CHECKS]
    # From one seed, and without a memory of earlier runs: what fails here fails again.
    command += ["--seed", "7", "--max-examples", examples, "--phases", "examples,coverage,fuzzing", "--no-color"]
    command += ["--generation-database", "none", "--continue-on-failure"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated" in done.stdout, f"nothing was sent:\n{done.stdout}"
