"""``kdist verify CONFIG``: whether it trains alike on one device and on several, before the several are paid for."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import jax
from rich.console import Console
from rich.table import Table

from kdist.arguments import training_and_validation
from kdist.cli import AddParser, check_devices
from kdist.cli.configs import data_of, loaded
from kdist.config import Config
from kdist.data import AnyLoader, is_loader
from kdist.errors import ConfigError
from kdist.verify import Comparison, verify

SIMULATED = 8
"""CPU devices that are simulated where there is one device only, if the config does not ask for more."""
_AGAIN = "KDIST_VERIFY_SIMULATED"
"""Set in the process that has simulated devices, which starts no other."""


def declare(add_parser: AddParser) -> None:
    """Adds the parser; see `kdist.cli`."""
    command = add_parser(
        description="Train a few steps of a config in several ways: on one device and on all, one step at a time and "
        "several as one program, on rows that are kept on the devices and on rows that are read again and streamed. "
        f"Where two of them part, the first layer that does is named. With one device here, {SIMULATED} are simulated. "
        "Fields of the config can be set as in train: kdist verify configs/digits.py --batch-size 24. The exit code is "
        "1 if any two part.",
    )
    command.add_argument("config", metavar="CONFIG", help="a Python file, or module:function")


def main(options: argparse.Namespace, rest: list[str]) -> int:
    """Verifies; 1 if anything parts."""
    config = loaded(options.config, rest, "verify")
    check_devices()
    if config.devices == 1:
        raise ConfigError(
            "devices is 1, and one device only has nothing to be compared with: leave it out, or set more."
        )
    if jax.device_count() == 1 and _AGAIN not in os.environ:
        return _on_simulated_devices(max(SIMULATED, config.devices or 0), [options.config, *rest])
    trainer = config.make_model().trainer
    found = verify(trainer, training_loader(config))
    where = f"{trainer.distribution.num_devices} {trainer.distribution.platform} devices"
    show(found, f"{config.name} on {where}", Console(highlight=False))
    return int(not all(comparison.agrees for comparison in found))


def training_loader(config: Config) -> AnyLoader:
    """The rows that `kdist train` would train on."""
    data = data_of(config)
    loader, _ = training_and_validation(
        data.x,
        data.y,
        data.sample_weight,
        batch_size=None if is_loader(data.x) else config.batch_size,  # a loader has its own
        validation_split=0.0 if data.validation is not None else config.validation_split,
        validation_data=None,
        validation_batch_size=None,
        steps_per_epoch=None,
        validation_steps=None,
        class_weight=None,
        shuffle=config.shuffle,
        seed=config.seed,
        cache=config.cache,
        check_finite=config.check_finite,
    )
    return loader


def show(found: list[Comparison], title: str, console: Console) -> None:
    """Prints the comparisons as a table, and below it what is to be said of each."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("comparison")
    for column in ("loss", "loss", "gradient apart", "may be"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for comparison in found:
        one, other = comparison.losses
        numbers = (f"{one:.6g}", f"{other:.6g}", f"{comparison.difference:.1e}", f"{comparison.tolerance:g}")
        table.add_row(comparison.name, *numbers, "agree" if comparison.agrees else "PART")
    console.print(table)
    for comparison in found:
        for text in (comparison.note, "" if comparison.agrees else f"First at {comparison.where}. {comparison.reason}"):
            if text:
                console.print(f"{comparison.name}: {text}", soft_wrap=True, markup=False)


def _on_simulated_devices(count: int, arguments: list[str]) -> int:
    """Runs the command again in a process that has several devices: in this one, JAX has counted them already."""
    print(f"One {jax.default_backend()} device here: verifying on {count} simulated CPU devices.", flush=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
    environment = {**os.environ, _AGAIN: "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.run([sys.executable, "-m", "kdist", "verify", *arguments], env=environment).returncode
