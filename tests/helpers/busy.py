"""Other work on this machine."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator


@contextlib.contextmanager
def busy_cores() -> Iterator[int]:
    """A busy process for each core of the machine; how many cores there are."""
    cores = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        time.sleep(0.5)
        yield cores
    finally:
        for process in busy:
            process.kill()
            process.wait()
