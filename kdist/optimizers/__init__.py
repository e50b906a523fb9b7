"""Optimizers by Keras's names, arguments, order and defaults, built of optax.

An `Optimizer` describes a `tx`, an `optax.GradientTransformation`.  Its learning rate is an injected
hyperparameter, so it lives in the optimizer state, and a callback changes it without a recompile.

The formulas are optax's.  Where they are not Keras's:

    ==================  ========================================================================
    optimizer           difference from Keras
    ==================  ========================================================================
    Adam, AdamW         epsilon is added to the bias-corrected root; Keras: to the uncorrected
                        one.  Seen where gradients are as small as epsilon; not with amsgrad
    Adamax              epsilon is added inside the running maximum; Keras: behind it
    Nadam               momentum is beta_1 from the start; Keras: it grows to it in 100 steps
    Adafactor           of 3 dimensions and more the two largest are factored; Keras: the last
                        two
    Muon                what its Adam part trains, as Adam; matrices as in Keras
    all others          none: SGD, RMSprop, Adadelta, Adagrad, Ftrl, Lion, Lamb,
                        ScheduleFreeAdamW
    ==================  ========================================================================

What surrounds the formula (clips, weight decay and its order, accumulation, averages, loss scaling,
schedules) is as in Keras for all of them.
"""

from __future__ import annotations

from typing import Any

from kdist.errors import ConfigError, unknown_name
from kdist.optimizers import schedules
from kdist.optimizers.adam import Adam, Adamax, AdamW, Lamb, Nadam
from kdist.optimizers.arguments import LearningRate, Schedule
from kdist.optimizers.base import Optimizer, OptStateHolder
from kdist.optimizers.contrib import Muon, ScheduleFreeAdamW
from kdist.optimizers.ema import EmaState, ema_params, swap_ema
from kdist.optimizers.ftrl import ftrl
from kdist.optimizers.loss_scale import FixedScaleState, LossScaleState, loss_scale
from kdist.optimizers.routed import MultiOptimizer, OptimizerMap, Parameter
from kdist.optimizers.rules import SGD, Adadelta, Adafactor, Adagrad, Ftrl, Lion, RMSprop
from kdist.optimizers.wrappers import LossScaleOptimizer, as_optimizer

__all__ = [
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "EmaState",
    "FixedScaleState",
    "Ftrl",
    "Lamb",
    "LearningRate",
    "Lion",
    "LossScaleOptimizer",
    "LossScaleState",
    "MultiOptimizer",
    "Muon",
    "Nadam",
    "OptStateHolder",
    "Optimizer",
    "OptimizerMap",
    "Parameter",
    "RMSprop",
    "SGD",
    "Schedule",
    "ScheduleFreeAdamW",
    "ema_params",
    "ftrl",
    "get",
    "loss_scale",
    "names",
    "schedules",
    "swap_ema",
]

_BY_NAME: dict[str, type[Optimizer]] = {
    cls.__name__.lower(): cls
    for cls in (
        SGD,
        RMSprop,
        Adam,
        AdamW,
        Adadelta,
        Adagrad,
        Adamax,
        Nadam,
        Adafactor,
        Ftrl,
        Lion,
        Lamb,
        Muon,
        ScheduleFreeAdamW,
    )
}

_WRAPPERS: dict[str, tuple[type[Optimizer], str]] = {
    "lossscaleoptimizer": (LossScaleOptimizer, "LossScaleOptimizer(kdist.optimizers.Adam())"),
    "multioptimizer": (MultiOptimizer, "MultiOptimizer(kdist.optimizers.OptimizerMap(kdist.optimizers.Adam(), {...}))"),
}
"""Optimizers that a name alone does not make, with what does."""


def names() -> list[str]:
    """Every string that `get` accepts, in lower case; case does not matter.

    Example:
        >>> "adam" in names(), "sgd" in names(), "adamax" in names(), "adma" in names()
        (True, True, True, False)
    """
    return sorted(_BY_NAME)


def get(identifier: Any, **arguments: Any) -> Optimizer:
    """An optimizer from what `compile` accepts.

    Args:
        identifier: A name in any case, an Optimizer, an optax transformation, or a dict
            ``{"class_name": name, "config": arguments}``, whose learning rate and inner optimizer may be
            such dicts too.
        arguments: Arguments of the class, with a name: ``get("adam", learning_rate=3e-4)``.

    Raises:
        ConfigError: The name or an argument is unknown, or the thing is no optimizer.

    Example:
        >>> get("adam", learning_rate=3e-4).learning_rate
        0.0003
        >>> get({"class_name": "SGD", "config": {"momentum": 0.9}}).momentum
        0.9
    """
    if isinstance(identifier, str):
        return _class(identifier, arguments)(**arguments)
    if arguments:
        raise ConfigError(f"Arguments {sorted(arguments)} go with an optimizer's name. Received: {identifier!r}.")
    if isinstance(identifier, dict):
        return _from_dict(identifier)
    return as_optimizer(identifier)


def _class(name: str, arguments: dict[str, Any]) -> type[Optimizer]:
    folded = name.lower()
    if folded in _WRAPPERS and arguments:
        return _WRAPPERS[folded][0]
    if folded in _WRAPPERS:
        raise ConfigError(
            f"{name!r} is made around other optimizers, which a name does not tell: "
            f"pass kdist.optimizers.{_WRAPPERS[folded][1]}."
        )
    if folded not in _BY_NAME:
        raise unknown_name("optimizer", name, names())
    return _BY_NAME[folded]


def _from_dict(given: dict[str, Any]) -> Optimizer:
    name, config = given.get("class_name"), given.get("config", {})
    if not isinstance(name, str) or not isinstance(config, dict):
        raise ConfigError(
            f'An optimizer as a dict is {{"class_name": a name, "config": a dict of arguments}}. Received: {given!r}.'
        )
    config = dict(config)
    if isinstance(config.get("learning_rate"), dict):
        config["learning_rate"] = schedules.deserialize(config["learning_rate"])
    if isinstance(config.get("inner_optimizer"), dict):
        config["inner_optimizer"] = _from_dict(config["inner_optimizer"])
    return _class(name, config)(**config)
