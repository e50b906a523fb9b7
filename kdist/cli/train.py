"""``kdist train CONFIG``: trains, and leaves a run directory behind.

The directory holds ``config.json``, ``history.jsonl`` (a line an epoch, as it happens), ``checkpoints/`` (what
``--resume`` goes on from) and ``weights/``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from kdist.callbacks import BackupAndRestore, Callback, History, JSONLLogger
from kdist.cli import AddParser, check_devices
from kdist.cli.configs import data_of, loaded
from kdist.config import Config, Data
from kdist.data import is_loader
from kdist.distribution import agree, check_agreement, initialize, is_main_process
from kdist.errors import ConfigError
from kdist.model import Model
from kdist.typing import Logs
from kdist.versions import installed

SECONDS_BETWEEN_SAVES = 30.0
"""What a killed run loses at most, but for the time of an epoch."""
DESCRIPTION = "config.json"
MAY_CHANGE = (
    "name epochs verbose run_dir devices zero_stage steps_per_execution microbatches cache check_finite".split()
)
"""Fields that a run may go on with other values of: they decide nothing that it computes."""


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    command = add_parser(
        description="Train the model of a config file, any field of which can be set: "
        "kdist train configs/digits.py --epochs 3. See them: kdist train configs/digits.py --help",
        add_help=False,
    )
    command.add_argument("config", nargs="?", metavar="CONFIG", help="a Python file, or module:function")
    command.add_argument("--resume", action="store_true", help="go on with the run in run_dir, if there is one")
    command.set_defaults(parser=command)


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Trains; help without a config is that of the command, and with one that of its fields."""
    if options.config is None:
        asked = bool({"-h", "--help"} & set(rest))
        options.parser.print_help(sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    run(options.config, rest, resume=options.resume)
    return 0


def run(source: str, arguments: Sequence[str], *, resume: bool = False) -> None:
    """Trains the model of a config.

    Args:
        source: The config file, or module:function.
        arguments: Overrides of its fields, as on the command line.
        resume: Whether to go on with the run in the directory, if there is one.

    Raises:
        ConfigError: The config or an override is wrong, or the run directory is taken.
    """
    initialize()
    config = loaded(source, arguments, "train")
    check_devices()
    check_agreement(**{f"the config's {name}": repr(value) for name, value in config.to_dict().items()})
    directory = _run_directory(config, resume=resume)
    model, data = config.make_model(), data_of(config)
    logger = JSONLLogger(directory / "history.jsonl")
    began = time.perf_counter()
    try:
        backup = BackupAndRestore(
            directory / "checkpoints",
            delete_checkpoint=False,
            double_checkpoint=True,
            min_seconds=SECONDS_BETWEEN_SAVES,
        )
        history = _fit(model, data, config, [_Description(directory, source, config), logger, backup])
    except KeyboardInterrupt:
        if jax.process_count() == 1 and model.built:  # on several processes nobody knows who else was interrupted
            model.save_weights(directory / "weights")
            print(f"\nInterrupted. The history and the weights so far are in {directory}")
        raise
    seconds = time.perf_counter() - began
    model.save_weights(directory / "weights")
    if is_main_process() and config.verbose != 0:
        print(_farewell(history, seconds, directory))


class _Description(Callback):
    """Writes what the run is made of, once everything has been found to fit."""

    def __init__(self, directory: Path, source: str, config: Config) -> None:
        super().__init__()
        self.directory, self.source, self.config = directory, source, config

    def on_train_begin(self, logs: Logs | None = None) -> None:
        if is_main_process():
            description = {
                "source": self.source,
                "fields": self.config.to_dict(),
                "versions": installed(),
                "mesh": self.model.progress()["mesh"],
            }
            text = json.dumps(description, indent=2) + "\n"
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                (self.directory / DESCRIPTION).write_text(text, encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"run_dir {self.directory} cannot be written: {error}") from error


def _fit(model: Model, data: Data, config: Config, callbacks: list[Callback]) -> History:
    return model.fit(
        data.x,
        data.y,
        sample_weight=data.sample_weight,
        validation_data=data.validation,
        validation_split=0.0 if data.validation is not None else config.validation_split,
        batch_size=None if is_loader(data.x) else config.batch_size,  # a loader has its own
        validation_batch_size=config.batch_size,
        epochs=config.epochs,
        shuffle=config.shuffle,
        verbose=config.verbose,
        cache=config.cache,
        check_finite=config.check_finite,
        callbacks=callbacks,
    )


def _run_directory(config: Config, *, resume: bool) -> Path:
    """Where to write, the same on every process: a directory that holds no other run, or the one to go on with."""
    runs = Path("runs") / config.name
    if config.run_dir == "":  # an empty variable of a shell, not a wish to write here
        raise ConfigError("run_dir is empty. Give a directory, or leave it out.")
    if config.run_dir is not None:
        directory = Path(config.run_dir)
    elif resume:
        earlier = sorted(p.parent.name for p in runs.glob(f"*/{DESCRIPTION}"))
        if not agree(len(earlier)):
            raise ConfigError(f"--resume: there is no run in {runs}. Leave it out, or give run_dir.")
        directory = runs / earlier[-1]
    else:
        directory = runs / time.strftime("%Y%m%d-%H%M%S", time.gmtime(agree(int(time.time()))))
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_dir {directory} is a file. Give a new directory.")
    if agree(int((directory / DESCRIPTION).exists())):  # process 0 decides, so that all of them stop
        if not resume:
            raise ConfigError(
                f"run_dir {directory} holds a run already. Go on with it (--resume), or give a new directory."
            )
        _check_same_fields(directory / DESCRIPTION, config)
    return directory


def _check_same_fields(path: Path, config: Config) -> None:
    """Refuses to go on with a run that was begun with other fields.

    Raises:
        ConfigError: One differs, or the description cannot be read.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["fields"]
        now = json.loads(json.dumps(config.to_dict()))
        changed = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in dict.fromkeys([*before, *now])
            if name not in MAY_CHANGE and before.get(name) != now.get(name)
        ]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read, which says what the run is made of: {error!r}.") from error
    if changed:
        raise ConfigError(
            f"The run in {path.parent} was begun otherwise: {'; '.join(changed)}. Go on with the same fields, or start "
            "a run in another directory."
        )


def _farewell(history: History, seconds: float, directory: Path) -> str:
    """The last line: what was reached, how fast, and where it is."""
    logs = history.history
    shown = [n for n in logs if n.startswith("val_")] or list(logs)
    reached = "  ".join(f"{name} {logs[name][-1]:.4f}" for name in shown)
    epochs = len(history.epoch)
    return f"{epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f}s  {reached}\nRun: {directory}"
