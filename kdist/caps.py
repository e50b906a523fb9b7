"""Caps from the environment, for trying out a script: at most so many epochs, of at most so many steps."""

from __future__ import annotations

import os
import warnings

from kdist.data import AnyLoader, with_steps
from kdist.errors import ConfigError

EPOCHS = "KDIST_MAX_EPOCHS"
STEPS = "KDIST_MAX_STEPS_PER_EPOCH"


def capped_epochs(epochs: int) -> int:
    """So many epochs, or fewer where ``KDIST_MAX_EPOCHS`` says so, with a warning.

    Raises:
        ConfigError: The variable is no positive integer.
    """
    cap = _cap(EPOCHS)
    if cap is None or epochs <= cap:
        return epochs
    warnings.warn(f"{EPOCHS}={cap} ends the training after {cap} of {epochs} epochs.", stacklevel=3)
    return cap


def capped_steps(loader: AnyLoader) -> AnyLoader:
    """The loader, in epochs of fewer steps where ``KDIST_MAX_STEPS_PER_EPOCH`` says so, with a warning.

    Raises:
        ConfigError: The variable is no positive integer.
    """
    cap = _cap(STEPS)
    if cap is None or (loader.num_steps is not None and loader.num_steps <= cap):
        return loader
    of = "" if loader.num_steps is None else f" of {loader.num_steps}"
    warnings.warn(f"{STEPS}={cap} ends each epoch after {cap}{of} steps.", stacklevel=3)
    return with_steps(loader, cap)


def _cap(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"The environment variable {variable} must be a positive integer. Received: {value!r}.")
    return int(value)
