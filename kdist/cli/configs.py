"""The config of a command: a file or function, with the fields that the command line sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kdist import config as configs
from kdist.config import Config, Data
from kdist.errors import ConfigError, unknown_name


def loaded(source: str, arguments: Sequence[str], command: str) -> Config:
    """The config of a command.

    Args:
        source: The config file, or module:function.
        arguments: What sets its fields, as on the command line.
        command: Whose arguments they are, for help.

    Raises:
        ConfigError: There is no such config, or no such field, or it lacks its model or its data.
        SystemExit: As in `override`.
    """
    config = override(configs.load(source), source, arguments, command)
    for method in ("make_module", "make_data"):
        if getattr(type(config), method) is getattr(Config, method):
            raise ConfigError(f"{type(config).__name__} of {source} must define {method}().")
    return config


def override(config: Config, source: str, arguments: Sequence[str], command: str = "train") -> Config:
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
        prog=f"kdist {command} {source}",
        description=f"Fields of {source}.",
        return_unknown_args=True,
    )
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        if not unknown[0].startswith("--"):
            raise ConfigError(f"Expected --field value after the config. Received: {' '.join(unknown)}.")
        raise unknown_name("config field", name, [f.name for f in dataclasses.fields(config)])
    return new


def data_of(config: Config) -> Data:
    """The data of a config.

    Raises:
        ConfigError: It makes something else.
    """
    data = config.make_data()
    if not isinstance(data, Data):
        raise ConfigError(
            f"make_data of {type(config).__name__} must return a kdist.config.Data. It returned a "
            f"{type(data).__name__}: wrap it, as in Data(x, y)."
        )
    return data
