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
    from kdist.cli import inspect, train

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
    inspection = commands.add_parser(
        "inspect",
        help="show and verify a checkpoint, or compare two",
        description="Show what is in a checkpoint and verify every array, or compare two array by array. No "
        "accelerator is touched. The exit code is 1 if an array is damaged or differs.",
    )
    inspection.add_argument("directory", metavar="DIR", help="a checkpoint, weights, a directory of steps, or a run's")
    inspection.add_argument("other", nargs="?", metavar="OTHER", help="what it is compared with")
    inspection.add_argument("--step", type=int, metavar="N", help="which step of a directory of steps; else the newest")

    options, rest = parser.parse_known_args(argv)
    if options.command == "inspect" and rest:
        inspection.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "train" and options.config is None:
        command.print_help(sys.stdout if {"-h", "--help"} & set(rest) else sys.stderr)
        return 0 if {"-h", "--help"} & set(rest) else 2
    try:
        if options.command == "inspect":
            return 0 if inspect.run(options.directory, options.other, options.step) else 1
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
