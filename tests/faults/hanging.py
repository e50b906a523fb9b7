"""A process under a watchdog with short limits. Usage: hanging.py WHAT."""

import sys
import threading
import time

from kdist.watchdog import Watchdog

FOREVER = 60.0
"""Longer than any test waits."""


def wait_for_rows() -> None:
    time.sleep(FOREVER)


def stuck() -> None:
    """A phase inside another, and a second thread."""
    threading.Thread(target=wait_for_rows, daemon=True).start()
    sys.stdout.write("before the end")  # in the buffer of a pipe
    with Watchdog({"data": 1.0}) as watchdog:
        watchdog.beat(12)
        with watchdog.phase("compile"), watchdog.phase("data"):
            wait_for_rows()


def stopped() -> None:
    """Healthy, but for the SIGSTOP that the test sends."""
    with Watchdog({"step": 1.5}) as watchdog:
        print("watched", flush=True)
        for step in range(20):
            watchdog.beat(step)
            time.sleep(0.1)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
