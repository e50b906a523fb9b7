"""One of two processes that fails in some way, or is there when the other does.

Usage: several.py COORDINATOR PROCESS_ID WHAT WHO. Process WHO is the one that fails; it prints when.
"""

import sys
import time

import numpy as np
from jax.experimental import multihost_utils

import kdist
from kdist.distribution.alarm import Alarm
from kdist.watchdog import Watchdog

FOREVER = 120.0
"""Longer than any test waits."""


def collective() -> None:
    """All processes must call it; who does is stuck until all have."""
    multihost_utils.process_allgather(np.ones(3, np.float32))


def fail() -> None:
    print(f"failed at {time.time()}", flush=True)
    raise LookupError("row 7 is missing")


def in_a_collective(fails: bool) -> None:
    """The other waits in a collective."""
    with Alarm() as alarm:
        for _ in range(3):
            collective()
            alarm.check()
        if fails:
            fail()
        collective()


def in_python(fails: bool) -> None:
    """The other runs Python code, and asks the alarm."""
    with Alarm() as alarm:
        collective()
        if fails:
            fail()
        while True:
            alarm.check()
            time.sleep(0.01)


def asleep(fails: bool) -> None:
    """The other does not ask."""
    with Alarm():
        collective()
        if fails:
            fail()
        time.sleep(FOREVER)


def outside(fails: bool) -> None:
    """The failure comes between two fits, and the other is in the next one."""
    with Alarm():
        collective()
    if fails:
        fail()
    with Alarm():
        collective()


def caught(fails: bool) -> None:
    """The failure is caught, on one process alone, which then does something else."""
    try:
        with Alarm():
            collective()
            if fails:
                fail()
    except LookupError:
        time.sleep(FOREVER)
    with Alarm():
        collective()


def alike(fails: bool) -> None:
    """Both raise and catch, one a little later than the other, and go on."""
    for number in range(3):
        try:
            with Alarm() as alarm:
                collective()
                if fails and number == 0:
                    time.sleep(1.5)
                raise ValueError(f"too many rows: {number}")
        except ValueError as error:
            assert str(error) == f"too many rows: {number}"
    with Alarm() as alarm:
        collective()
        time.sleep(1.5)  # the thread looks again
        alarm.check()
    print("went on")


def stuck(fails: bool) -> None:
    """One never gets its data, the other waits in a collective."""
    limits = {"data": 2.0} if fails else {}
    with Watchdog(limits) as watchdog, Alarm():
        for step in range(3):
            with watchdog.phase("data"):
                if fails and step == 2:
                    print(f"failed at {time.time() + 2.0}", flush=True)
                    time.sleep(FOREVER)
            collective()
            watchdog.beat(step)


def main() -> None:
    coordinator, process_id, what, who = sys.argv[1:]
    kdist.initialize(coordinator, 2, int(process_id), initialization_timeout=60)
    globals()[what](process_id == who)


if __name__ == "__main__":
    main()
