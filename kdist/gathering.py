"""Split parameters, gathered where they are read: a function is traced for whole ones and evaluated on parts.

Gathered before the forward pass, all parameters of a model would be in memory at once.  So its jaxpr is evaluated here
operation by operation, and a part becomes whole only for the operation that reads it: inside the body of a `lax.scan`
over layers, a layer at a time, and inside `jax.checkpoint`, where it is gathered again for the backward pass.  This
needs nothing of the module but that it is made of JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from kdist.typing import PyTree

RECOMPUTED = frozenset(
    {"all_gather", "broadcast_in_dim", "convert_element_type", "copy", "reshape", "slice", "squeeze", "transpose"}
)
"""Primitives whose results the backward pass makes anew: they may be gathered parameters in another shape or dtype."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """An array of which each device holds a part.

    Attributes:
        part: This device's.
        axis: The dimension that is split.
        size: The length of that dimension over all devices.
        dtype: What the whole is to be cast to.
    """

    part: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole."""
        return (*self.part.shape[: self.axis], self.size, *self.part.shape[self.axis + 1 :])


class Collectives(NamedTuple):
    """How parts become a whole, and how gradients of the whole become those of parts.

    Attributes:
        gather: ``(part, axis)``, the parts of all shards one after the other.
        scatter: ``(gradient, axis)``, this shard's part of the sum over shards.
    """

    gather: Callable[[jax.Array, int], jax.Array]
    scatter: Callable[[jax.Array, int], jax.Array]


def whole(split: Split, collectives: Collectives) -> jax.Array:
    """The whole of a parameter; its gradient is summed in the parameter's own dtype, whatever it is computed in.

    Args:
        split: What this shard has.
        collectives: How to reach the other shards.
    """

    def gather_parameter(part: jax.Array) -> jax.Array:
        return collectives.gather(part.astype(split.dtype), split.axis)

    def forward(part: jax.Array) -> tuple[jax.Array, None]:
        return gather_parameter(part), None

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        return (collectives.scatter(gradient.astype(split.part.dtype), split.axis),)

    gathered = jax.custom_vjp(gather_parameter)
    gathered.defvjp(forward, backward)
    return gathered(split.part)


def is_split(a: Any) -> bool:
    """Whether it is a `Split`; for `jax.tree.map`."""
    return isinstance(a, Split)


def call(fn: Callable[..., PyTree], params: PyTree, *args: PyTree, collectives: Collectives) -> PyTree:
    """``fn(params, *args)`` for parameters of which some are `Split`; what it saves for its gradient is never gathered.

    Args:
        fn: A function of arrays; it sees whole ones.
        params: A tree of arrays and of `Split`.
        args: Trees of arrays.
        collectives: How to reach the other shards.

    Example:
        >>> half = Split(jnp.arange(2.0), axis=0, size=4, dtype=jnp.dtype("float32"))
        >>> twice = Collectives(gather=lambda a, axis: jnp.tile(a, 2), scatter=lambda a, axis: a[:2] + a[2:])
        >>> call(lambda p, x: p["w"] * x, {"w": half}, 10.0, collectives=twice).tolist()
        [0.0, 10.0, 0.0, 10.0]
    """

    def evaluated(params: PyTree, *args: PyTree) -> PyTree:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params, is_leaf=is_split)
        traced, out = jax.make_jaxpr(fn, return_shape=True)(shapes, *args)
        inputs = [*jax.tree.leaves(params, is_leaf=is_split), *jax.tree.leaves(args)]
        return jax.tree.unflatten(jax.tree.structure(out), _evaluate(traced.jaxpr, traced.consts, inputs, collectives))

    return jax.checkpoint(evaluated, policy=_saves)(params, *args)


def _saves(primitive: Any, *avals: Any, name: Any = None, **params: Any) -> bool:
    """Whether the backward pass may keep what an operation gave, which gathered parameters are not."""
    return primitive.name not in RECOMPUTED and name != "gather_parameter"


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], collectives: Collectives) -> list[Any]:
    """The outputs of a jaxpr, some of whose inputs are `Split`; none of its outputs is."""
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    def read_whole(v: Any) -> Any:
        value = read(v)
        if is_split(value):  # for good: a second reader shares it
            value = env[v] = whole(value, collectives)
        return value

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        found = [read(v) for v in equation.invars]
        outputs = None
        if any(map(is_split, found)):
            if name in _RULES_OF_ONE:
                outputs = _RULES_OF_ONE[name](found[0], params)
            elif name == "jit":
                outputs = _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, found, collectives)
            elif name == "remat2":
                outputs = _rematerialised(params, found, collectives)
            elif name == "scan" and any(is_split(x) and x.axis > 0 for x in _scanned_over(params, found)):
                outputs = _scanned(params, found, collectives)
        if outputs is None:
            needed = {v: read_whole(v) for v in equation.invars if not isinstance(v, Literal)}
            # As JAX itself evaluates a jaxpr that holds nothing else.
            alone = jaxpr.replace(constvars=[], invars=list(needed), outvars=equation.outvars, eqns=[equation])
            outputs = jaxpr_as_fun(ClosedJaxpr(alone, ()))(*needed.values())
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read_whole(v) for v in jaxpr.outvars]


def _cast(split: Split, params: dict[str, Any]) -> list[Split] | None:
    """To the compute dtype, before it is gathered; a second cast acts on the whole."""
    to, own = params["new_dtype"], split.part.dtype
    fits = split.dtype == own and jnp.issubdtype(to, jnp.floating) and jnp.issubdtype(own, jnp.floating)
    return [dataclasses.replace(split, dtype=to)] if fits else None


def _transposed(split: Split, params: dict[str, Any]) -> list[Split]:
    order = params["permutation"]
    return [dataclasses.replace(split, part=jax.lax.transpose(split.part, order), axis=order.index(split.axis))]


_RULES_OF_ONE = {"convert_element_type": _cast, "transpose": _transposed}
"""Operations of one array that a part goes through as it is; None for one that needs the whole."""


def _rematerialised(params: dict[str, Any], inputs: list[Any], collectives: Collectives) -> list[Any]:
    """A `jax.checkpoint` inside the function: what it reads is gathered inside, whatever else its policy saves."""
    theirs = params["policy"]

    def saves(primitive: Any, *avals: Any, **arguments: Any) -> Any:
        return theirs(primitive, *avals, **arguments) if _saves(primitive, **arguments) else False

    return jax.checkpoint(
        lambda *inputs: _evaluate(params["jaxpr"], (), inputs, collectives),
        prevent_cse=params["prevent_cse"],
        policy=theirs and saves,
    )(*inputs)


def _scanned_over(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    return inputs[params["num_consts"] + params["num_carry"] :]


def _scanned(params: dict[str, Any], inputs: list[Any], collectives: Collectives) -> list[Any]:
    """A `lax.scan` over layers: what is split on another dimension than the layers' is gathered layer by layer."""
    num_consts, num_carry, closed = params["num_consts"], params["num_carry"], params["jaxpr"]
    xs = [whole(x, collectives) if is_split(x) and x.axis == 0 else x for x in _scanned_over(params, inputs)]
    fixed = [whole(a, collectives) if is_split(a) else a for a in inputs[: num_consts + num_carry]]

    def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        layer = [dataclasses.replace(x, axis=x.axis - 1) if is_split(x) else x for x in xs]
        outputs = _evaluate(closed.jaxpr, closed.consts, [*fixed[:num_consts], *carry, *layer], collectives)
        return outputs[:num_carry], outputs[num_carry:]

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(jax.checkpoint(body, policy=_saves, prevent_cse=False), fixed[num_consts:], xs, **how)
    return [*carry, *ys]
