"""The `kdist` command: one file a subcommand.

Exit codes: 0 done, 1 error, 2 usage, 42 preempted and saved (start again with --resume), 43 ended by the watchdog since
nothing happened any more, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax

from kdist.distribution.alarm import leave
from kdist.errors import ConfigError, KDistError
from kdist.preemption import PREEMPTED, Preempted


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Its arguments; those of the process by default.

    Returns:
        The exit code.
    """
    from kdist import __version__
    from kdist.cli import train

    parser = argparse.ArgumentParser("kdist", description="Train Flax models on any number of devices.")
    parser.add_argument("--version", action="version", version=f"kdist {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "train",
        help="train the model of a config",
        description="Train the model of a config file, any field of which can be set: "
        "kdist train configs/digits.py --epochs 3. See them: kdist train configs/digits.py --help",
        add_help=False,
        allow_abbrev=False,
    )
    command.add_argument("config", nargs="?", metavar="CONFIG", help="a Python file, or module:function")
    command.add_argument("--resume", action="store_true", help="go on with the run in run_dir, if there is one")

    options, rest = parser.parse_known_args(argv)
    if options.config is None:
        command.print_help(sys.stdout if {"-h", "--help"} & set(rest) else sys.stderr)
        return 0 if {"-h", "--help"} & set(rest) else 2
    try:
        train.run(options.config, rest, resume=options.resume)
    except ConfigError as error:
        return _failed(error, 2)
    except KDistError as error:
        return _failed(error, 1)
    except Preempted as ended:
        print(f"kdist: {ended}", file=sys.stderr)
        return PREEMPTED
    except KeyboardInterrupt:
        return 130
    return 0


def _failed(error: KDistError, code: int) -> int:
    """Says what is wrong; of several processes, this one does not wait for the others to end."""
    print(f"kdist: {error}", file=sys.stderr)
    if jax.process_count() > 1:
        leave(code)
    return code
