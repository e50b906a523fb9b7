"""The `kdist` command: one file a subcommand, each of which has two functions.

``declare(add_parser)`` adds its parser to those of the others, and ``main(options, rest)`` runs it, with the arguments
that the parser did not know, and returns the exit code.  The file is imported if its command is called: `launch` does
not wait for JAX.

Exit codes: 0 done, 1 error, 2 usage, 42 preempted and saved (start again with --resume), 43 ended by the watchdog since
nothing happened any more, 130 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from kdist.errors import ConfigError, DistributionError, KDistError
from kdist.exits import PREEMPTED

COMMANDS = {
    "train": "train the model of a config",
    "plan": "whether a config fits on a TPU slice, and what a step takes, without one",
    "verify": "whether a config trains alike on 1 device and on N, and where it does not",
    "inspect": "show and verify a checkpoint, or compare two",
    "launch": "run a command in several processes on this host",
    "doctor": "check devices, versions, launcher, peers, disks and limits",
}
"""What help says of each, in this order."""
AddParser = Callable[..., argparse.ArgumentParser]
"""Adds the parser of a command; what it takes is what `argparse.ArgumentParser` takes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Its arguments; those of the process by default.

    Returns:
        The exit code.
    """
    from kdist import __version__

    parser = argparse.ArgumentParser("kdist", description="Train Flax models on any number of devices.")
    parser.add_argument("--version", action="version", version=f"kdist {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words = sys.argv[1:] if argv is None else argv
    called = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        add_parser = functools.partial(commands.add_parser, name, help=text, allow_abbrev=False)
        if name == called:
            module = importlib.import_module(f"kdist.cli.{name}")
            module.declare(add_parser)
        else:
            add_parser()
    options, rest = parser.parse_known_args(words)
    try:
        return module.main(options, rest)
    except ConfigError as error:
        return _failed(error, 2)
    except KDistError as error:
        return _failed(error, 1)
    except SystemExit as ended:
        if ended.code != PREEMPTED:
            raise
        print(f"kdist: {ended}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        return 130


def _failed(error: KDistError, code: int) -> int:
    """Says what is wrong; of several processes, this one does not wait for the others to end."""
    print(f"kdist: {error}", file=sys.stderr)
    if "jax" in sys.modules:  # else it has joined no others
        from kdist.distribution.alarm import leave
        from kdist.distribution.store import store

        if store() is not None:
            leave(code)
    return code


def refuse(rest: Sequence[str]) -> None:
    """Refuses arguments that a command does not know.

    Raises:
        ConfigError: There are some.
    """
    if rest:
        raise ConfigError(f"unrecognized arguments: {' '.join(rest)}. See --help.")


def check_devices() -> None:
    """Refuses to go on where JAX cannot use its devices.

    Raises:
        DistributionError: It cannot.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a word, where there is no such platform
        raise DistributionError(
            f"JAX cannot use its devices: {str(error) or 'it finds none'}. JAX_PLATFORMS is "
            f"{os.environ.get('JAX_PLATFORMS', '')!r}; `kdist doctor` looks for the cause."
        ) from error
