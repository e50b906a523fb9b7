"""The `kdist` command: one file a subcommand, each of which has two functions.

``declare(commands)`` adds its parser to those of the others, and ``main(options, rest)`` runs it, with the arguments
that the parser did not know, and returns the exit code.

Exit codes: 0 done, 1 error, 2 usage, 42 preempted and saved (start again with --resume), 43 ended by the watchdog since
nothing happened any more, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import jax

from kdist.distribution.alarm import leave
from kdist.errors import ConfigError, KDistError
from kdist.preemption import PREEMPTED, Preempted

COMMANDS = ("train", "plan", "verify", "inspect", "launch", "doctor")
"""In the order in which help shows them."""


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
    modules = {name: importlib.import_module(f"kdist.cli.{name}") for name in COMMANDS}
    for module in modules.values():
        module.declare(commands)
    options, rest = parser.parse_known_args(argv)
    try:
        return modules[options.command].main(options, rest)
    except ConfigError as error:
        return _failed(error, 2)
    except KDistError as error:
        return _failed(error, 1)
    except Preempted as ended:
        print(f"kdist: {ended}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        return 130


def _failed(error: KDistError, code: int) -> int:
    """Says what is wrong; of several processes, this one does not wait for the others to end."""
    print(f"kdist: {error}", file=sys.stderr)
    if jax.process_count() > 1:
        leave(code)
    return code


def refuse(rest: Sequence[str]) -> None:
    """Refuses arguments that a command does not know.

    Raises:
        ConfigError: There are some.
    """
    if rest:
        raise ConfigError(f"unrecognized arguments: {' '.join(rest)}. See --help.")
