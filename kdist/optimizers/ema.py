"""The moving average of the parameters that `use_ema` keeps, as part of the optimizer's state."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdist.errors import ConfigError
from kdist.typing import PyTree


class EmaState(NamedTuple):
    """What `with_ema` carries.

    Attributes:
        batches: Batches seen, int32.
        average: The average, shaped like the parameters; the parameters themselves before the first batch.
        inner: The state of the optimizer inside.

    Example:
        >>> from kdist.optimizers import SGD
        >>> state = SGD(0.1, use_ema=True).tx.init({"w": jnp.ones(2)})
        >>> int(state.batches), state.average["w"].tolist()
        (0, [1.0, 1.0])
    """

    batches: jax.Array
    average: PyTree
    inner: PyTree


def with_ema(
    inner: optax.GradientTransformation, momentum: float, overwrite_frequency: int | None, accumulation_steps: int
) -> optax.GradientTransformation:
    """Averages what an optimizer makes of the parameters, after every batch.

    Until the first update is counted, the average is the parameters; then it is
    ``momentum * average + (1 - momentum) * parameters``.

    Args:
        inner: The optimizer.
        momentum: How much of the average stays.
        overwrite_frequency: Every how many updates the parameters become the average; None for never.
        accumulation_steps: How many batches make an update.
    """

    def init(params: PyTree) -> EmaState:
        # Copies, since parameters and state are donated together.
        return EmaState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params), inner.init(params))

    def update(grads: PyTree, state: EmaState, params: PyTree = None) -> tuple[PyTree, EmaState]:
        updates, inner_state = inner.update(grads, state.inner, params)
        iterations = state.batches // accumulation_steps
        m = jnp.where(iterations > 0, momentum, 0.0)
        average = jax.tree.map(
            lambda a, p: (m * a + (1 - m) * p).astype(a.dtype), state.average, optax.apply_updates(params, updates)
        )
        if overwrite_frequency is not None:
            overwrite = (iterations + 1) % overwrite_frequency == 0
            updates = jax.tree.map(lambda u, a, p: jnp.where(overwrite, a - p, u), updates, average, params)
        return updates, EmaState(optax.safe_increment(state.batches), average, inner_state)

    return optax.GradientTransformation(init, update)


def ema_params(opt_state: PyTree, params: PyTree = None) -> PyTree | None:
    """The moving average of the parameters.

    Args:
        opt_state: The state of an optimizer, wrapped or not.
        params: The parameters, for those that have no average: the ones that a MultiOptimizer trains by a part without
            `use_ema`; none by default.

    Returns:
        The average, shaped like the parameters and not copied; None if none is kept.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdist import optimizers
        >>> state = optimizers.SGD(use_ema=True).tx.init({"w": jnp.ones(2)})
        >>> print(ema_params(state)["w"])
        [1. 1.]
    """
    averages = [state.average for state in _states(opt_state)]
    if not averages:
        return None
    if params is not None:
        averages.append(params)
    return jax.tree.map(lambda *found: next(a for a in found if not _is_hole(a)), *averages, is_leaf=_is_hole)


def swap_ema(params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
    """Exchanges the parameters and their moving average; twice is not at all.

    Nothing is copied: every array is in one place afterwards, as before.

    Args:
        params: The parameters.
        opt_state: The state of their optimizer.

    Returns:
        Parameters that are the average, and a state whose average is the parameters.

    Raises:
        ConfigError: The optimizer keeps no average.

    Example:
        >>> import jax.numpy as jnp
        >>> from kdist import optimizers
        >>> params = {"w": jnp.ones(2)}
        >>> state = optimizers.SGD(use_ema=True).tx.init(params)
        >>> average, state = swap_ema({"w": jnp.zeros(2)}, state)
        >>> print(average["w"], ema_params(state)["w"])
        [1. 1.] [0. 0.]
    """
    average = ema_params(opt_state, params)
    if average is None:
        raise ConfigError(
            "The optimizer keeps no moving average of the weights: create it with use_ema=True, "
            "such as kdist.optimizers.Adam(use_ema=True)."
        )

    def replace(part: Any) -> Any:
        if not isinstance(part, EmaState):
            return part
        kept = jax.tree.map(lambda a, p: a if _is_hole(a) else p, part.average, params, is_leaf=_is_hole)
        return part._replace(average=kept)

    return average, jax.tree.map(replace, opt_state, is_leaf=_is_ema)


def _states(opt_state: PyTree) -> list[EmaState]:
    return [part for part in jax.tree.leaves(opt_state, is_leaf=_is_ema) if _is_ema(part)]


def _is_ema(part: Any) -> bool:
    return isinstance(part, EmaState)


def _is_hole(part: Any) -> bool:
    """Whether optax has masked a parameter out, since another part of a MultiOptimizer has it."""
    return isinstance(part, optax.MaskedNode)
