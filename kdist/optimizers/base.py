"""What an optimizer is: an optax transformation with a name, and a learning rate that can be set while it trains.

The order of one update is Keras's: unscale (loss_scale.py), accumulate, clip, decay (transforms.py), the
class's own `rule`, average (ema.py).  What is not asked for is not in the transformation.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, Protocol, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdist.errors import ConfigError, unknown_name
from kdist.optimizers.arguments import (
    COMMON_DEFAULTS,
    CommonArguments,
    LearningRate,
    Schedule,
    check_common,
    is_number,
    keras_signature,
    strings,
    takes_step,
)
from kdist.optimizers.ema import with_ema
from kdist.optimizers.loss_scale import with_fixed_scale
from kdist.optimizers.schedules import LearningRateSchedule, serialize
from kdist.optimizers.transforms import clip_each_by_norm, decay_first, path_name
from kdist.typing import PyTree


class OptStateHolder(Protocol):
    """Where a live optimizer finds the state that its learning rate is in.

    Example:
        >>> class Holder:
        ...     def __init__(self, optimizer, params):
        ...         self.opt_state = optimizer.tx.init(params)
        ...     def read_opt_state(self):
        ...         return self.opt_state
        ...     def write_opt_state(self, opt_state):
        ...         self.opt_state = opt_state
        >>> from kdist.optimizers import SGD
        >>> sgd = SGD(0.1)
        >>> sgd.attach(Holder(sgd, {"w": jnp.ones(2)}))
        >>> sgd.learning_rate = 0.05
        >>> round(sgd.learning_rate, 6)
        0.05
    """

    def read_opt_state(self) -> PyTree | None:
        """The current optimizer state; None before there is one."""

    def write_opt_state(self, opt_state: PyTree) -> None:
        """Replaces it."""


class Optimizer:
    """The base of all optimizers.  A class of your own overrides `rule`.

    Args:
        learning_rate: A number, a schedule (a function of the step), or a function of nothing that is
            called once, when training starts.
        weight_decay: Decoupled decay of every parameter, ``p -= learning_rate * weight_decay * p``, before the rule
            sees it; none by default.
        clipnorm: Clip each parameter's gradient to this L2 norm; none by default.
        clipvalue: Clip each gradient element to [-clipvalue, clipvalue]; none by default.
        global_clipnorm: Clip the norm of all gradients together; none by default.  At most one of the three.
        use_ema: Whether to keep a moving average of the parameters; `fit` ends with it as the weights; False by
            default.
        ema_momentum: How much of the average stays at each batch; 0.99 by default.
        ema_overwrite_frequency: Every how many updates the parameters become the average; never by default.
        loss_scale_factor: Multiply the loss by this, and divide the gradients by it, for float16; none by default.
        gradient_accumulation_steps: Update once every so many batches, by their mean gradient; none by default.  A
            schedule counts batches all the same.
        name: The name; the class's in lower case by default.

    Attributes:
        tx: The `optax.GradientTransformation`.
        unscaled_tx: The same without `loss_scale_factor`, for wrappers that scale themselves.

    Raises:
        ConfigError: An argument is out of its range or unknown, or clips are combined.

    Example:
        >>> import optax
        >>> class SignSGD(Optimizer):
        ...     def rule(self, learning_rate):
        ...         return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(learning_rate))
        >>> SignSGD(1e-3, clipnorm=1.0).learning_rate
        0.001
    """

    _holder: OptStateHolder | None = None
    _schedule: Schedule | None = None

    @keras_signature
    def __init__(self, learning_rate: LearningRate, **common: Unpack[CommonArguments]) -> None:
        options: CommonArguments = {**COMMON_DEFAULTS, **common}
        check_common(options)
        self.name = options["name"] or type(self).__name__.lower()
        self.weight_decay = options["weight_decay"]
        self.clipnorm = options["clipnorm"]
        self.clipvalue = options["clipvalue"]
        self.global_clipnorm = options["global_clipnorm"]
        self.use_ema = options["use_ema"]
        self.ema_momentum = options["ema_momentum"]
        self.ema_overwrite_frequency = options["ema_overwrite_frequency"]
        self.loss_scale_factor = options["loss_scale_factor"]
        self.gradient_accumulation_steps = options["gradient_accumulation_steps"]
        self._undecayed: tuple[frozenset[str], re.Pattern[str] | None] = (frozenset(), None)
        self._traced = False

        if not callable(learning_rate) and not is_number(learning_rate):
            raise ConfigError(
                f"learning_rate must be a number or a schedule (a function of the step). Received: {learning_rate!r}."
            )
        self._learning_rate: Any = learning_rate if callable(learning_rate) else float(learning_rate)
        if callable(learning_rate) and takes_step(learning_rate):
            self._schedule = self._per_update(learning_rate)
        self.unscaled_tx = self._assemble()
        self.tx = self.unscaled_tx
        if self.loss_scale_factor is not None:
            self.tx = with_fixed_scale(self.tx, self.loss_scale_factor)

    def rule(self, learning_rate: Any) -> optax.GradientTransformation:
        """The update rule.

        Args:
            learning_rate: The rate of the update, a scalar inside the compiled step.

        Returns:
            A transformation from (clipped, mean) gradients to what is added to the parameters.

        Example:
            >>> import optax
            >>> class Noisy(Optimizer):
            ...     def rule(self, learning_rate):
            ...         return optax.noisy_sgd(learning_rate, eta=0.01)
            >>> Noisy(0.1, clipnorm=1.0).name
            'noisy'
        """
        raise NotImplementedError(f"{type(self).__name__} must define rule(learning_rate).")

    def decay_of(self, path: str, param: jax.Array) -> float | None:
        """The weight decay of one parameter that is not excluded from it; None for none.

        Args:
            path: Where it is, such as ``dense/kernel``.
            param: Its value.

        Example:
            >>> from kdist import optimizers
            >>> class KernelsOnly(optimizers.AdamW):
            ...     def decay_of(self, path, param):
            ...         return self.weight_decay if param.ndim > 1 else None
            >>> adamw = KernelsOnly(weight_decay=0.01)
            >>> adamw.decay_of("dense/kernel", jnp.ones((3, 2))), adamw.decay_of("dense/bias", jnp.ones(2))
            (0.01, None)
        """
        return self.weight_decay

    def exclude_from_weight_decay(
        self, var_list: Iterable[str] | None = None, var_names: Iterable[str] | None = None
    ) -> None:
        """Leaves parameters out of the weight decay.  Call it before training.

        Args:
            var_list: Paths of parameters, such as ``dense/kernel``; none by default.
            var_names: Regular expressions; a parameter with one of them anywhere in its path is left out.  None by
                default.

        Raises:
            ConfigError: Training has begun, or an argument is not a list of strings.

        Example:
            >>> from kdist import optimizers
            >>> adamw = optimizers.AdamW()
            >>> adamw.exclude_from_weight_decay(var_names=["bias", "scale"])
        """
        if self._traced:
            raise ConfigError("exclude_from_weight_decay must be called before training: its steps are compiled.")
        paths, fragments = strings("var_list", var_list), strings("var_names", var_names)
        try:
            pattern = re.compile("|".join(f"(?:{f})" for f in fragments)) if fragments else None
        except re.error as error:
            raise ConfigError(f"var_names must be regular expressions. Received: {fragments} ({error}).") from error
        self._undecayed = (frozenset(paths), pattern)

    # The learning rate ------------------------------------------------------------------------------

    def attach(self, holder: OptStateHolder) -> None:
        """Makes `learning_rate` that of a run: read from, and written to, the holder's state.

        Args:
            holder: What has the state of the run, such as a `kdist.Trainer`.

        Example:
            >>> from kdist import optimizers
            >>> class Holder:
            ...     def __init__(self, opt_state):
            ...         self.opt_state = opt_state
            ...     def read_opt_state(self):
            ...         return self.opt_state
            ...     def write_opt_state(self, opt_state):
            ...         self.opt_state = opt_state
            >>> sgd = optimizers.SGD(0.1)
            >>> holder = Holder(sgd.tx.init({"w": jnp.ones(2)}))
            >>> sgd.attach(holder)
            >>> sgd.learning_rate = 0.05
            >>> round(float(holder.opt_state.hyperparams["learning_rate"]), 6)
            0.05
        """
        self._holder = holder

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update, a float; before training, what was given, a schedule too.

        Raises:
            AttributeError: There is none, or not one.
        """
        injected = self._injected()
        if injected is None:
            return self._given_rate()
        schedule = self._schedule
        return _shortest(injected.hyperparams["learning_rate"] if schedule is None else schedule(_count(injected)))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if self._schedule is not None:
            raise TypeError(
                "This optimizer's learning rate is a schedule; it cannot be set. "
                "Pass a number as learning_rate to set it while training."
            )
        if callable(value):
            raise TypeError(
                f"learning_rate can only be set to a number: a schedule is given at the start. Received: {value!r}."
            )
        if self._injected() is None:
            self._given_rate()
        elif self._holder is not None:
            self._holder.write_opt_state(_with_rate(self._holder.read_opt_state(), value))
        self._learning_rate = float(value)

    def learning_rates(self) -> dict[str, float]:
        """The rate of the next update as it is logged: by "learning_rate", or by part where there are parts.

        Example:
            >>> from kdist import optimizers
            >>> optimizers.Adam(3e-4).learning_rates()
            {'learning_rate': 0.0003}
        """
        rate = self.learning_rate
        return {"learning_rate": _shortest(self._schedule(np.int32(0))) if self._schedule and callable(rate) else rate}

    @property
    def iterations(self) -> int:
        """Updates so far: the batches, or with accumulation the groups of them; 0 before training."""
        injected = self._injected()
        return 0 if injected is None else int(_count(injected))

    def _given_rate(self) -> Any:
        """The rate before training."""
        given = self._learning_rate
        return given() if callable(given) and self._schedule is None else given

    def _injected(self) -> Any:
        """The part of the run's state that the rate is in; None before there is one."""
        return _rate_part(None if self._holder is None else self._holder.read_opt_state())

    # The configuration ------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; a schedule of kdist.optimizers.schedules as its name and arguments.

        Example:
            >>> from kdist import optimizers
            >>> config = optimizers.SGD(0.1, momentum=0.9).get_config()
            >>> optimizers.get({"class_name": "SGD", "config": config}).momentum
            0.9
        """
        config = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        rate = self._learning_rate
        return config | {"learning_rate": serialize(rate) if isinstance(rate, LearningRateSchedule) else rate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Optimizer:
        """An optimizer with the arguments that `get_config` gave."""
        return cls(**config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # Its transformation -----------------------------------------------------------------------------

    def _per_update(self, schedule: Schedule) -> Schedule:
        """The schedule as a function of the update count, a float whatever it gives: as in Keras, it counts batches."""
        every = self.gradient_accumulation_steps or 1
        return lambda count: 1.0 * schedule(every * count + (every - 1))

    def _assemble(self) -> optax.GradientTransformation:
        """All but the scaling of the loss, around `rule`."""
        every = self.gradient_accumulation_steps
        start = self._schedule or 0.0  # a number is put in by init: it can be set before training
        tx = optax.inject_hyperparams(self._clipped_and_decayed)(learning_rate=start)
        if every is not None:
            tx = optax.MultiSteps(tx, every).gradient_transformation()
        if self.use_ema:
            tx = with_ema(tx, self.ema_momentum, self.ema_overwrite_frequency, every or 1)

        def init(params: PyTree) -> PyTree:
            """A state that starts with the rate as it was set last."""
            state = tx.init(params)
            return state if self._schedule is not None else _with_rate(state, self._given_rate())

        def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            self._begin(params)
            return tx.update(grads, state, params)

        return optax.GradientTransformation(init, update)

    def _clipped_and_decayed(self, learning_rate: Any) -> optax.GradientTransformation:
        parts = []
        if self.clipnorm is not None:
            parts.append(clip_each_by_norm(self.clipnorm))
        if self.clipvalue is not None:
            parts.append(optax.clip(self.clipvalue))
        if self.global_clipnorm is not None:
            parts.append(optax.clip_by_global_norm(self.global_clipnorm))
        rule = self.rule(learning_rate)
        parts.append(decay_first(rule, learning_rate, self._decay_unless_excluded) if self._decays() else rule)
        return optax.chain(*parts) if len(parts) > 1 else parts[0]

    def _decays(self) -> bool:
        return bool(self.weight_decay)

    def _decay_unless_excluded(self, path: str, param: jax.Array) -> float | None:
        exact, pattern = self._undecayed
        excluded = path in exact or (pattern is not None and pattern.search(path))
        return None if excluded else self.decay_of(path, param)

    def _begin(self, params: PyTree) -> None:
        """Called as a step is traced: from here on, what it was traced with holds."""
        self._traced = True
        exact, _ = self._undecayed
        if exact:
            paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            for path in sorted(exact.difference(paths)):
                raise unknown_name("parameter in exclude_from_weight_decay(var_list)", path, paths)


def _holds_rate(part: Any) -> bool:
    return "learning_rate" in getattr(part, "hyperparams", ())


def _rate_part(state: PyTree) -> Any:
    return next((part for part in jax.tree.leaves(state, is_leaf=_holds_rate) if _holds_rate(part)), None)


def _with_rate(state: PyTree, rate: Any) -> PyTree:
    """An optimizer state with another learning rate in it, on the same devices."""

    def replace(part: Any) -> Any:
        if not _holds_rate(part):
            return part
        old = part.hyperparams["learning_rate"]
        new = jax.device_put(jnp.asarray(rate, old.dtype), getattr(old, "sharding", None))
        return part._replace(hyperparams={**part.hyperparams, "learning_rate": new})

    return jax.tree.map(replace, state, is_leaf=_holds_rate)


def _count(injected: Any) -> np.ndarray:
    """The updates so far, on the host: processes that do not read it need not take part."""
    return np.asarray(injected.count)


def _shortest(rate: Any) -> float:
    """The float32 as the shortest decimal that means it: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(rate)))
