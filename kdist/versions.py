"""Versions of what kdist stands on: those that it was tested with, and those that are here."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

TESTED: Mapping[str, str] = {
    "python": "3.11",
    "jax": "0.10.2",
    "jaxlib": "0.10.2",
    "flax": "0.12.8",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12.8",
    "grain": "0.2.18",
}
"""What the tests pass with."""
MISSING = "not installed"


def installed() -> dict[str, str]:
    """The versions here of kdist itself and of all in `TESTED`, by name.

    Example:
        >>> versions = installed()
        >>> versions["kdist"], set(TESTED) < set(versions)
        ('0.1.0', True)
    """
    return {"python": platform.python_version()} | {
        name: version_of(name) for name in ("kdist", *TESTED) if name != "python"
    }


def version_of(package: str) -> str:
    """The version of an installed package, asked without importing it.

    Args:
        package: Its name.

    Example:
        >>> version_of("no-such-package")
        'not installed'
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return MISSING
