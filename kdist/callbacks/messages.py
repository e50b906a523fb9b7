"""What callbacks tell the person: said once, by process 0."""

from __future__ import annotations

import warnings

from kdist.distribution import is_main_process


def say(text: str) -> None:
    """Prints a line."""
    if is_main_process():
        print(text, flush=True)


def warn(text: str) -> None:
    """Warns of something that training goes on without."""
    if is_main_process():
        warnings.warn(text, stacklevel=3)
