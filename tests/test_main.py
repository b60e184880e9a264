"""`python -m wfkernels` as one command among others in a pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [("info --json", ""), ("info --json", "1"), ("--help", "")],
    ids=["when it ends", "while it prints", "help"],
)
def test_ends_quietly_where_nobody_reads_on(command: str, unbuffered: str) -> None:
    # As behind `| head -1` that has read its line, but without a race.
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wfkernels", *command.split()],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    finally:
        os.close(writer)
    # What a shell reports for a command that the signal ended.
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)
