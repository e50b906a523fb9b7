"""Optimizers by Keras's names and defaults, built of optax.

An `Optimizer` describes a `tx`, an `optax.GradientTransformation`.  Its learning rate is an injected
hyperparameter, so it lives in the optimizer state, and a callback changes it without a recompile.

The formulas are optax's.  They are Keras's too, but for these: Adam, AdamW, Adamax, Nadam and Lamb
add epsilon to the bias-corrected root (Keras: to the uncorrected one), so they differ where
gradients are as small as epsilon; Adafactor factors the two largest axes of a parameter (Keras: the
last two); Muon averages its momentum (Keras: sums it); Nadam has no momentum schedule.  To add an
optimizer: write the class, and one `_register` line at the end of the file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdist.errors import ConfigError, unknown_name
from kdist.typing import PyTree

Schedule = Callable[[Any], Any]
LearningRate = float | int | Schedule


_NOT_YET = {
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
}
"""Arguments of Keras's optimizers that this version accepts at their defaults only."""


class OptStateHolder(Protocol):
    """Where a live optimizer finds the state that its learning rate is in."""

    def read_opt_state(self) -> PyTree | None:
        """The current optimizer state; None before there is one."""

    def write_opt_state(self, opt_state: PyTree) -> None:
        """Replaces it."""


class Optimizer:
    """An optax transformation with a name and a learning rate that can be set while it trains.

    Args:
        make: Makes the transformation from the learning rate; `tx` holds the result.
        learning_rate: A number, or an optax schedule: a function of the update count.
        clipnorm: Clip each parameter's gradient to this L2 norm.
        clipvalue: Clip each gradient element to [-clipvalue, clipvalue].
        global_clipnorm: Clip the norm of all gradients together.  At most one of the three.
        weight_decay: Decoupled decay of every parameter, ``p -= learning_rate * weight_decay * p``.
        gradient_accumulation_steps: Update once every so many batches, by their mean gradient.
        name: The name; the class's in snake case by default.

    Raises:
        ConfigError: An argument is out of its range, or clips are combined.
    """

    def __init__(
        self,
        make: Callable[[Any], optax.GradientTransformation],
        learning_rate: LearningRate,
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        weight_decay: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **others: Any,
    ) -> None:
        self.name = name or type(self).__name__.lower()
        for argument, value in others.items():
            if argument not in _NOT_YET:
                raise unknown_name(f"argument of {type(self).__name__}", argument, _arguments(type(self)))
            if value != _NOT_YET[argument]:
                raise ConfigError(f"{argument}={value!r} is not supported yet: leave it at {_NOT_YET[argument]!r}.")
        if not callable(learning_rate) and (
            isinstance(learning_rate, bool) or not isinstance(learning_rate, (int, float))
        ):
            raise ConfigError(
                f"learning_rate must be a number or a schedule (a function of the step). Received: {learning_rate!r}."
            )
        clips = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
        given = {k: v for k, v in clips.items() if v is not None}
        if len(given) > 1:
            raise ConfigError(f"Only one of clipnorm, clipvalue and global_clipnorm can be set. Received: {given}.")
        if any(v <= 0 for v in given.values()):
            raise ConfigError(f"A clip must be positive. Received: {given}.")
        accumulate = gradient_accumulation_steps
        if accumulate is not None and (not isinstance(accumulate, int) or accumulate < 2):
            raise ConfigError(f"gradient_accumulation_steps must be an integer of 2 or more. Received: {accumulate!r}.")

        def transformation(learning_rate: Any) -> optax.GradientTransformation:
            parts = []
            if clipnorm is not None:
                parts.append(_clip_each_by_norm(clipnorm))
            if clipvalue is not None:
                parts.append(optax.clip(clipvalue))
            if global_clipnorm is not None:
                parts.append(optax.clip_by_global_norm(global_clipnorm))
            parts.append(make(learning_rate))
            if weight_decay:
                parts.append(optax.add_decayed_weights(-learning_rate * weight_decay))
            return optax.chain(*parts) if len(parts) > 1 else parts[0]

        self._learning_rate: LearningRate = learning_rate if callable(learning_rate) else float(learning_rate)
        self._schedule: Schedule | None = learning_rate if callable(learning_rate) else None
        if callable(learning_rate) and accumulate is not None:  # as in Keras, schedules count batches

            def of_batches(count: Any) -> Any:
                return learning_rate(accumulate * count + accumulate - 1)

            self._schedule = of_batches
        self._holder: OptStateHolder | None = None
        tx = optax.inject_hyperparams(transformation)(learning_rate=self._schedule or self._learning_rate)
        if accumulate is not None:
            tx = optax.MultiSteps(tx, accumulate).gradient_transformation()

        def init(params: PyTree) -> PyTree:
            """A state that starts with the rate as it was set last."""
            state = tx.init(params)
            return state if callable(self._learning_rate) else _with_rate(state, self._learning_rate)

        self.tx: optax.GradientTransformation = optax.GradientTransformation(init, tx.update)

    def attach(self, holder: OptStateHolder) -> None:
        """Makes `learning_rate` that of a run: read from, and written to, the holder's state."""
        self._holder = holder

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update, a float; before training, what was given, a schedule too.

        Raises:
            AttributeError: The optimizer is an optax transformation without an injected rate.
        """
        injected = self._injected()
        if injected is None:
            return self._given_rate()
        schedule = self._schedule
        return _shortest(injected.hyperparams["learning_rate"] if schedule is None else schedule(injected.count))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if self._schedule is not None:
            raise TypeError(
                "This optimizer's learning rate is a schedule; it cannot be set. "
                "Pass a number as learning_rate to set it while training."
            )
        if self._injected() is None:
            self._given_rate()
        elif self._holder is not None:
            self._holder.write_opt_state(_with_rate(self._holder.read_opt_state(), value))
        self._learning_rate = float(value)

    def _given_rate(self) -> Any:
        return self._learning_rate

    def _injected(self) -> Any:
        """The part of the run's state that the rate is in; None before there is one."""
        state = None if self._holder is None else self._holder.read_opt_state()
        return next((part for part in jax.tree.leaves(state, is_leaf=_holds_rate) if _holds_rate(part)), None)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class _Given(Optimizer):
    """An optax transformation that the user built; its rate is live if it was injected."""

    def __init__(self, tx: optax.GradientTransformation) -> None:
        self.name = "optax"
        self.tx = tx
        self._schedule = None
        self._holder = None

    def _given_rate(self) -> Any:
        raise AttributeError(
            "This optax transformation has no learning rate that can be read or set (before training, none has). "
            "Build it with optax.inject_hyperparams(...)(learning_rate=...), or use kdist.optimizers."
        )


def _holds_rate(part: Any) -> bool:
    return "learning_rate" in getattr(part, "hyperparams", ())


def _with_rate(state: PyTree, rate: float) -> PyTree:
    """An optimizer state with another learning rate in it, on the same devices."""

    def replace(part: Any) -> Any:
        if not _holds_rate(part):
            return part
        old = part.hyperparams["learning_rate"]
        new = jax.device_put(jnp.asarray(rate, old.dtype), getattr(old, "sharding", None))
        return part._replace(hyperparams={**part.hyperparams, "learning_rate": new})

    return jax.tree.map(replace, state, is_leaf=_holds_rate)


def _shortest(rate: jax.Array) -> float:
    """The float32 as the shortest decimal that means it: 0.001, not 0.0010000000474974513."""
    return float(str(np.float32(rate)))


def _clip_each_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales each gradient leaf whose L2 norm exceeds `limit` down to it."""

    def clip(g: jax.Array, _: Any) -> jax.Array:
        return g * limit / jnp.maximum(jnp.linalg.norm(g.ravel()), limit)

    return optax.stateless_with_tree_map(clip)


class SGD(Optimizer):
    """Gradient descent, with momentum of Keras's kind: the rate acts on what enters the buffer."""

    def __init__(self, learning_rate: LearningRate = 0.01, momentum=0.0, nesterov=False, **common: Any):
        if not 0 <= momentum <= 1:
            raise ConfigError(f"momentum must lie in [0, 1]. Received: {momentum!r}.")

        def make(rate):
            descend = optax.scale_by_learning_rate(rate)
            return optax.chain(descend, optax.trace(momentum, nesterov)) if momentum else descend

        super().__init__(make, learning_rate, **common)


class RMSprop(Optimizer):
    """`optax.rmsprop`."""

    def __init__(
        self, learning_rate: LearningRate = 1e-3, rho=0.9, momentum=0.0, epsilon=1e-7, centered=False, **common: Any
    ):
        super().__init__(
            lambda rate: optax.rmsprop(rate, rho, epsilon, centered=centered, momentum=momentum or None),
            learning_rate,
            **common,
        )


class Adam(Optimizer):
    """`optax.adam`, or `optax.amsgrad`."""

    def __init__(
        self, learning_rate: LearningRate = 1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, amsgrad=False, **common: Any
    ):
        rule = optax.amsgrad if amsgrad else optax.adam
        super().__init__(lambda rate: rule(rate, beta_1, beta_2, epsilon), learning_rate, **common)


class AdamW(Adam):
    """Adam with decoupled weight decay, of every parameter, as Keras has it."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        weight_decay=4e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        amsgrad=False,
        **common: Any,
    ):
        if weight_decay is None:
            raise ConfigError("AdamW needs a weight_decay. Received: None. Use Adam for none.")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **common)


class Adadelta(Optimizer):
    """`optax.adadelta`."""

    def __init__(self, learning_rate: LearningRate = 1e-3, rho=0.95, epsilon=1e-7, **common: Any):
        super().__init__(lambda rate: optax.adadelta(rate, rho, epsilon), learning_rate, **common)


class Adagrad(Optimizer):
    """`optax.adagrad`."""

    def __init__(self, learning_rate: LearningRate = 1e-3, initial_accumulator_value=0.1, epsilon=1e-7, **common: Any):
        super().__init__(lambda rate: optax.adagrad(rate, initial_accumulator_value, epsilon), learning_rate, **common)


class Adamax(Optimizer):
    """`optax.adamax`."""

    def __init__(self, learning_rate: LearningRate = 1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, **common: Any):
        super().__init__(lambda rate: optax.adamax(rate, beta_1, beta_2, epsilon), learning_rate, **common)


class Nadam(Optimizer):
    """`optax.nadam`."""

    def __init__(self, learning_rate: LearningRate = 1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, **common: Any):
        super().__init__(lambda rate: optax.nadam(rate, beta_1, beta_2, epsilon), learning_rate, **common)


class Adafactor(Optimizer):
    """`optax.adafactor`, factored at every size as in Keras; with `relative_step`, at most 1/sqrt(t)."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        beta_2_decay=-0.8,
        epsilon_1=1e-30,
        epsilon_2=1e-3,
        clip_threshold=1.0,
        relative_step=True,
        **common: Any,
    ):
        def make(rate):
            scale = optax.scale_by_schedule(_at_most_inverse_sqrt(rate)) if relative_step else optax.scale(rate)
            return optax.chain(
                optax.scale_by_factored_rms(min_dim_size_to_factor=1, decay_rate=-beta_2_decay, epsilon=epsilon_1),
                optax.clip_by_block_rms(clip_threshold),
                scale,
                optax.scale_by_param_block_rms(epsilon_2),
                optax.scale(-1.0),
            )

        super().__init__(make, learning_rate, **common)


def _at_most_inverse_sqrt(rate: Any) -> Schedule:
    return lambda count: jnp.minimum(rate, jax.lax.rsqrt(jnp.asarray(count, jnp.float32) + 1.0))


class Lion(Optimizer):
    """`optax.lion`, with no decay unless asked for."""

    def __init__(self, learning_rate: LearningRate = 1e-3, beta_1=0.9, beta_2=0.99, **common: Any):
        if not 0 < beta_1 <= 1:
            raise ConfigError(f"beta_1 must lie in (0, 1]. Received: {beta_1!r}.")
        super().__init__(lambda rate: optax.lion(rate, beta_1, beta_2, weight_decay=0.0), learning_rate, **common)


class Lamb(Optimizer):
    """`optax.lamb`."""

    def __init__(self, learning_rate: LearningRate = 1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, **common: Any):
        super().__init__(lambda rate: optax.lamb(rate, beta_1, beta_2, epsilon), learning_rate, **common)


class Muon(Optimizer):
    """`optax.contrib.muon`: orthogonalised momentum for matrices, Adam for everything else."""

    def __init__(
        self,
        learning_rate: LearningRate = 1e-3,
        adam_beta_1=0.9,
        adam_beta_2=0.999,
        adam_weight_decay=4e-3,
        epsilon=1e-7,
        weight_decay=4e-3,
        ns_coeffs: Sequence[float] = (3.4445, -4.7750, 2.0315),
        momentum=0.95,
        ns_steps=5,
        nesterov=True,
        rms_rate=0.2,
        **common: Any,
    ):
        def make(rate):
            return optax.contrib.muon(
                rate,
                ns_coeffs=tuple(ns_coeffs),
                ns_steps=ns_steps,
                beta=momentum,
                eps=epsilon,
                weight_decay=weight_decay,
                nesterov=nesterov,
                adam_b1=adam_beta_1,
                adam_b2=adam_beta_2,
                adam_weight_decay=adam_weight_decay,
                consistent_rms=rms_rate,
            )

        super().__init__(make, learning_rate, **common)


class ScheduleFreeAdamW(Optimizer):
    """`optax.contrib.schedule_free_adamw`."""

    def __init__(
        self,
        learning_rate: LearningRate = 2.5e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        warmup_steps=0,
        **common: Any,
    ):
        def make(rate):
            return optax.contrib.schedule_free_adamw(
                rate, warmup_steps=warmup_steps or None, b1=beta_1, b2=beta_2, eps=epsilon
            )

        super().__init__(make, learning_rate, **common)


def _arguments(cls: type[Optimizer]) -> list[str]:
    names = [*inspect.signature(cls).parameters, *inspect.signature(Optimizer).parameters]
    return [name for name in names if name not in ("make", "common", "others")]


_BY_NAME: dict[str, type[Optimizer]] = {}


def _register(cls: type[Optimizer]) -> None:
    _BY_NAME[cls.__name__.lower()] = cls


for _cls in (
    SGD,
    RMSprop,
    Adam,
    AdamW,
    Adadelta,
    Adagrad,
    Adamax,
    Nadam,
    Adafactor,
    Lion,
    Lamb,
    Muon,
    ScheduleFreeAdamW,
):
    _register(_cls)


def names() -> list[str]:
    """Every string that `get` accepts, in lower case; case does not matter."""
    return sorted(_BY_NAME)


def get(identifier: Any, **arguments: Any) -> Optimizer:
    """An optimizer from what `compile` accepts.

    Args:
        identifier: A name in any case, an Optimizer, or an optax transformation.
        arguments: Arguments of the class, with a name: ``get("adam", learning_rate=3e-4)``.

    Raises:
        ConfigError: The name or an argument is unknown, or the thing is no optimizer.
    """
    if isinstance(identifier, str):
        if identifier.lower() not in _BY_NAME:
            raise unknown_name("optimizer", identifier, names())
        cls = _BY_NAME[identifier.lower()]
        return cls(**arguments)
    if arguments:
        raise ConfigError(f"Arguments {sorted(arguments)} go with an optimizer's name. Received: {identifier!r}.")
    if isinstance(identifier, Optimizer):
        return identifier
    if isinstance(identifier, optax.GradientTransformation):
        return _Given(identifier)
    raise ConfigError(
        "Could not interpret optimizer identifier: expected a name, a kdist optimizer (an instance, "
        f"such as kdist.optimizers.Adam(1e-3)) or an optax transformation. Received: {identifier!r}."
    )
