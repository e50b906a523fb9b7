"""``kdist train CONFIG``: trains, and leaves a run directory behind.

The directory holds ``config.json``, ``history.jsonl`` (a line an epoch, as it happens) and ``weights/``.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from kdist import config as configs
from kdist.callbacks import Callback, History, JSONLLogger
from kdist.config import Config, Data
from kdist.data import is_loader
from kdist.distribution import agree, initialize, is_main_process
from kdist.errors import ConfigError, unknown_name
from kdist.model import Model
from kdist.typing import Logs


def run(source: str, arguments: Sequence[str]) -> None:
    """Trains the model of a config.

    Args:
        source: The config file, or module:function.
        arguments: Overrides of its fields, as on the command line.

    Raises:
        ConfigError: The config or an override is wrong, or the run directory is taken.
    """
    initialize()
    config = override(configs.load(source), source, arguments)
    directory = _run_directory(config)
    model, data = config.make_model(), config.make_data()
    logger = JSONLLogger(directory / "history.jsonl")
    began = time.perf_counter()
    try:
        history = _fit(model, data, config, [_Description(directory, source, config), logger])
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
            description = {"source": self.source, "fields": self.config.to_dict(), "versions": _versions()}
            text = json.dumps(description, indent=2) + "\n"
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                (self.directory / "config.json").write_text(text, encoding="utf-8")
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


def override(config: Config, source: str, arguments: Sequence[str]) -> Config:
    """The config with fields set from command line arguments, each by its type.

    Raises:
        ConfigError: There is no such field.
        SystemExit: A value does not fit its field (status 2), or help was asked for (status 0).
    """
    import tyro

    new, unknown = tyro.cli(
        type(config),
        default=config,
        args=list(arguments),
        prog=f"kdist train {source}",
        description=f"Fields of {source}.",
        return_unknown_args=True,
    )
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        if not unknown[0].startswith("--"):
            raise ConfigError(f"Expected --field value after the config. Received: {' '.join(unknown)}.")
        raise unknown_name("config field", name, [f.name for f in dataclasses.fields(config)])
    return new


def _run_directory(config: Config) -> Path:
    """Where to write: a directory that holds no other run, the same on every process."""
    if config.run_dir is None:
        now = time.strftime("%Y%m%d-%H%M%S", time.gmtime(agree(int(time.time()))))
        directory = Path("runs") / config.name / now
    else:
        directory = Path(config.run_dir)
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"run_dir {directory} is a file. Give a new directory.")
    if agree(int((directory / "config.json").exists())):  # process 0 decides, so that all of them stop
        raise ConfigError(f"run_dir {directory} holds a run already. Give a new directory, or remove it.")
    return directory


def _versions() -> dict[str, Any]:
    import flax
    import optax

    from kdist import __version__

    return {
        "kdist": __version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def _farewell(history: History, seconds: float, directory: Path) -> str:
    """The last line: what was reached, how fast, and where it is."""
    logs = history.history
    shown = [n for n in logs if n.startswith("val_")] or list(logs)
    reached = "  ".join(f"{name} {logs[name][-1]:.4f}" for name in shown)
    epochs = len(history.epoch)
    return f"{epochs} epoch{'s' * (epochs != 1)} in {seconds:.1f}s  {reached}\nRun: {directory}"
