"""The exceptions that kdist raises on purpose, and the "did you mean" that their messages share.

A message says what was received, what was expected and what to do.  User mistakes are
``ValueError``s raised before the first step; ``assert`` is kept for kdist's own bugs.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class KDistError(Exception):
    """Base of everything that kdist raises on purpose."""


class NotCompiledError(KDistError, RuntimeError, ValueError):
    """Training or evaluation was asked of a model without `compile`.

    It is both a RuntimeError and a ValueError, since Keras 2 documents one and Keras 3 raises
    the other.
    """


class DataError(KDistError, ValueError):
    """The data handed in cannot be trained on as they are."""


class ConfigError(KDistError, ValueError):
    """An argument, a name or a configuration field is wrong."""


class CheckpointError(KDistError):
    """A checkpoint could not be written or read."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint is damaged."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint holds another tree of arrays than the model."""


class DistributionError(KDistError, RuntimeError):
    """Devices or processes are not as the run needs them."""


class HangError(KDistError, RuntimeError):
    """Nothing has progressed for longer than the limit."""


class NonFiniteError(KDistError, FloatingPointError):
    """The loss or a gradient became NaN or infinite, and ``compile(nonfinite="raise")`` asked for an error."""


@contextlib.contextmanager
def said_of(name: str) -> Iterator[None]:
    """Names, in front of the message of a DataError, the argument that it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that is in no registry, with the closest match.

    Args:
        kind: What the name was to be, for the message: "loss", "metric", "optimizer", ...
        name: The name received.
        known: Every name accepted.

    Returns:
        The exception, for the caller to raise.
    """
    names = sorted(set(known))
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    return ConfigError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
