"""Jobs in other processes: what these inherit."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os
import signal
import time

from ufm.runtime import processes


def seen(parent, share):
    time.sleep(0.3)  # for the other process to begin
    deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return ("here" if os.getpid() == parent else "there") + (" deaf" if deaf else "")


if __name__ == "__main__":
    jobs = [(os.getpid(),)] * 12
    keep = lambda i, said: print(said)
    processes.run(seen, jobs, 2, keep, lambda i, part: None, patience=0)
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no such masks")
def test_processes_are_born_deaf_to_interrupts(tmp_path):
    """As they import, before they can ignore the signal; the one that collects is not deaf."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    line = [sys.executable, str(file)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    assert set(done.stdout.splitlines()) == {"here", "there deaf"}
