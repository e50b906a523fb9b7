"""A run as data: a frozen dataclass of fields that a config file fills and the command line overrides.

A config file defines ``config() -> kdist.Config``.  It subclasses `Config`, adds fields of its own (the
width of a layer, the strength of dropout) and says, in `make_module` and `make_data`, what they mean.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdist import optimizers
from kdist.distribution import DataParallel
from kdist.errors import ConfigError, unknown_name
from kdist.model import Model
from kdist.typing import PyTree


class Data(NamedTuple):
    """The data of a run.

    A loader has a batch size, an order and a seed of its own: `make_data` gives it those of the config.

    Attributes:
        x: Inputs, or a loader (see `kdist.data.from_source`).
        y: Targets, unless `x` is a loader.
        sample_weight: Weights, if there are any.
        validation: ``(x, y)``, ``(x, y, sample_weight)``, a loader, or None.
    """

    x: Any
    y: PyTree = None
    sample_weight: PyTree = None
    validation: Any = None


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of.  Subclass it, and override `make_module` and `make_data`.

    Attributes:
        name: What the run is called; "run" by default.
        epochs: The epoch to stop before; 10 by default.
        batch_size: Rows of an optimizer step, over all devices; 32 by default.
        optimizer: An optimizer's name; "adam" by default.
        learning_rate: The learning rate; the optimizer's own default if none is given.
        loss: A loss's name; "mse" by default.
        metrics: Names of metrics; none by default.
        validation_split: The fraction of rows held out, if there are no validation data; 0.0 by default.
        shuffle: Whether each epoch has an order of its own; True by default.
        seed: What parameters, dropout and orders are drawn from; 0 by default.
        steps_per_execution: How many steps run as one program; "auto" by default.
        precision: The dtype that the model computes in; "float32" by default.
        microbatches: How many parts each batch is worked through in, or "auto"; 1 by default.
        cache: Whether the rows are kept on the devices; "auto" by default.
        check_finite: Whether to read all data once, first, and refuse NaN and infinity; False by default.
        devices: How many of the devices to use; all by default.
        zero_stage: How much of the state is split over them, see `kdist.DataParallel`; 0, nothing, by default.
        verbose: 0 silent, 1 or auto a bar in a terminal and a line an epoch elsewhere, 2 lines; "auto" by default.
        run_dir: Where the run is written: a new directory; runs/NAME/TIME by default.

    Example:
        >>> import flax.linen as nn, numpy as np
        >>> class Line(Config):
        ...     def make_module(self):
        ...         return nn.Dense(1)
        ...     def make_data(self):
        ...         return Data(np.ones((8, 3)), np.zeros((8, 1)))
        >>> Line(epochs=2).replace(batch_size=4).to_dict()["epochs"]
        2
    """

    name: str = "run"
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float | None = None
    loss: str = "mse"
    metrics: tuple[str, ...] = ()
    validation_split: float = 0.0
    shuffle: bool = True
    seed: int = 0
    steps_per_execution: int | Literal["auto"] = "auto"
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    microbatches: int | Literal["auto"] = 1
    cache: bool | Literal["auto"] = "auto"
    check_finite: bool = False
    devices: int | None = None
    zero_stage: Literal[0, 1, 2, 3] = 0
    verbose: Literal["auto", 0, 1, 2] = "auto"
    run_dir: str | None = None

    def make_module(self) -> Any:
        """The model: a Flax module, a pair of functions, or a `kdist.Model`.

        Example:
            >>> import flax.linen as nn
            >>> class Line(Config):
            ...     width: int = 1
            ...     def make_module(self):
            ...         return nn.Dense(self.width)
            >>> Line().make_module().features
            1
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_module().")

    def make_data(self) -> Data:
        """The data.

        Example:
            >>> import numpy as np
            >>> class Line(Config):
            ...     def make_data(self):
            ...         x = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
            ...         return Data(x, 2 * x + 1, validation=(x, 2 * x + 1))
            >>> Line().make_data().x.shape
            (64, 1)
        """
        raise NotImplementedError(f"{type(self).__name__} must define make_data().")

    def make_loss(self) -> Any:
        """The loss, or losses by output; `loss` by default.

        Example:
            >>> import kdist
            >>> class Robust(Config):
            ...     def make_loss(self):
            ...         return kdist.losses.Huber(delta=0.5)
            >>> Robust().make_loss(), Config(loss="mae").make_loss()
            (<Huber 'huber_loss', reduction='sum_over_batch_size'>, 'mae')
        """
        return self.loss

    def make_metrics(self) -> Any:
        """The metrics, or metrics by output; `metrics` by default.

        Example:
            >>> Config(metrics=("mae", "acc")).make_metrics()
            ['mae', 'acc']
        """
        return list(self.metrics)

    def make_optimizer(self) -> Any:
        """The optimizer; that of the name `optimizer` by default.

        Raises:
            ConfigError: There is no optimizer of that name.

        Example:
            >>> Config(optimizer="sgd", learning_rate=0.1).make_optimizer().learning_rate
            0.1
        """
        arguments = {} if self.learning_rate is None else {"learning_rate": self.learning_rate}
        return optimizers.get(self.optimizer, **arguments)

    def make_model(self, devices: Sequence[Any] | None = None) -> Model:
        """The compiled model.

        Args:
            devices: What it is compiled for; by default those that are here, as many as the field says.

        Raises:
            ConfigError: A field has a value that `kdist.Model.compile` refuses, or there are not so many `devices`.

        Example:
            >>> import flax.linen as nn
            >>> class Line(Config):
            ...     def make_module(self):
            ...         return nn.Dense(1)
            >>> Line(optimizer="sgd").make_model().optimizer
            <SGD 'sgd'>
        """
        module = self.make_module()
        model = module if isinstance(module, Model) else Model(module, seed=self.seed, name=self.name)
        model.compile(
            self.make_optimizer(),
            self.make_loss(),
            metrics=self.make_metrics(),
            steps_per_execution=self.steps_per_execution,
            precision=self.precision,
            microbatches=self.microbatches,
            distribution=self._distribution(devices),
        )
        model.trainer.config = self.to_dict()
        return model

    def _distribution(self, devices: Sequence[Any] | None) -> DataParallel:
        import jax

        if devices is None and self.devices is not None:
            if not 1 <= self.devices <= jax.device_count():
                raise ConfigError(f"devices must lie in 1 .. {jax.device_count()}. Received: {self.devices}.")
            devices = jax.devices()[: self.devices]
        return DataParallel(zero_stage=self.zero_stage, devices=devices)

    def replace(self, **fields: Any) -> Config:
        """A copy with other values.

        Args:
            **fields: Values by the name of a field.

        Raises:
            ConfigError: There is no such field.

        Example:
            >>> Config(epochs=2).replace(epochs=5, batch_size=64).epochs
            5
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in fields:
            if name not in known:
                raise unknown_name("config field", name, known)
        return dataclasses.replace(self, **fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name.

        Example:
            >>> Config(epochs=2).to_dict()["epochs"]
            2
        """
        return dataclasses.asdict(self)


def load(source: str) -> Config:
    """The config of a file, or of ``module:function``.

    Args:
        source: A path that ends in ``.py``, whose `config` is called, or a module and a function in it.

    Raises:
        ConfigError: There is no such thing, or it gives no Config.
    """
    path = Path(source)
    if source.endswith(".py"):
        if not path.is_file():
            raise ConfigError(f"There is no config file {source}: looked in {Path.cwd()}.")
        sys.path.insert(0, str(path.parent.absolute()))  # as `python configs/digits.py` would
        # Registered for the types of its dataclass to be found, under a name that hides no other module.
        spec = importlib.util.spec_from_file_location(f"kdist_config_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        name = "config"
    else:
        module_name, _, name = source.partition(":")
        if not name:
            raise ConfigError(f"Expected a config file (CONFIG.py) or module:function. Received: {source!r}.")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"There is no module {error.name!r}, wanted for {source!r}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{source} does not define `{name}`. Define `def {name}() -> kdist.Config: ...` in it.")
    config = function()
    if not isinstance(config, Config):
        raise ConfigError(f"`{name}` of {source} must return a kdist.Config. It returned {config!r}.")
    return config
