"""Split parameters, gathered where they are read: a function is traced for whole ones and evaluated on parts.

Gathered before the forward pass, all parameters of a model would be in memory at once.  So its jaxpr is evaluated here
operation by operation, and a part becomes whole only for the operation that reads it: inside the body of a `lax.scan`
over layers, a layer at a time.  The backward pass gathers it again, as if each such operation were in a
`jax.checkpoint` of its own; where the module has a `jax.checkpoint` around it, that is the one.  This needs nothing of
the module but that it is made of JAX.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun, jaxprs_in_params

from kdist.typing import PyTree

LAYOUT = frozenset({"broadcast_in_dim", "convert_element_type", "copy", "reshape", "slice", "squeeze", "transpose"})
"""Primitives whose result is the same parameter in another form: they are put off until something reads it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split:
    """An array of which each device holds a part.

    Attributes:
        part: This device's.
        axis: The dimension that is split.
        size: The length of that dimension over all devices.
        dtype: What the whole is to be cast to.
        then: Operations of one array that the whole is to go through.
    """

    part: jax.Array
    axis: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    then: tuple[JaxprEqn, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole, before `then`."""
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
    array = gathered(split.part)
    for equation in split.then:
        (array,) = _as_it_is(equation, [array])
    return array


def is_split(a: Any) -> bool:
    """Whether it is a `Split`; for `jax.tree.map`."""
    return isinstance(a, Split)


def call(fn: Callable[..., PyTree], params: PyTree, *args: PyTree, collectives: Collectives) -> PyTree:
    """``fn(params, *args)`` for parameters of which some are `Split`.

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
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params, is_leaf=is_split)
    traced, out = jax.make_jaxpr(fn, return_shape=True)(shapes, *args)
    inputs = [*jax.tree.leaves(params, is_leaf=is_split), *jax.tree.leaves(args)]
    # Without a barrier XLA would find that the backward pass gathers the same again, and keep it.
    again = functools.partial(jax.checkpoint, policy=_saves, prevent_cse=True)
    outputs = _Evaluation(collectives, again).of(traced.jaxpr, traced.consts, inputs)
    return jax.tree.unflatten(jax.tree.structure(out), outputs)


def _saves(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Whether the backward pass may keep what an operation gave, which is no gathered parameter in any form."""
    return primitive.name not in LAYOUT and primitive.name != "all_gather" and params.get("name") != "gather_parameter"


def _as_it_is(equation: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of an operation on whole arrays, by JAX's own evaluation of a jaxpr that holds nothing else."""
    variables = [v for v in equation.invars if not isinstance(v, Literal)]
    values = [a for v, a in zip(equation.invars, inputs, strict=True) if not isinstance(v, Literal)]
    unique = dict(zip(variables, values, strict=True))
    names = DebugInfo("gathering", "", None, None)
    alone = Jaxpr([], list(unique), equation.outvars, [equation], equation.effects, names)
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*unique.values())


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """The evaluation of jaxprs some of whose inputs are `Split`.

    Attributes:
        collectives: How to reach the other shards.
        again: Wraps an operation that reads a parameter, so that its gradient gathers that again.
    """

    collectives: Collectives
    again: Callable[[Callable[..., Any]], Callable[..., Any]]

    def of(self, jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs, none of which is a `Split`."""
        env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

        def read(v: Any) -> Any:
            return v.val if isinstance(v, Literal) else env[v]

        for equation in jaxpr.eqns:
            found = [read(v) for v in equation.invars]
            split = any(map(is_split, found))
            outputs = self._of_split(equation, found) if split else _as_it_is(equation, found)
            env.update(zip(equation.outvars, outputs, strict=True))
        return [self._whole(read(v)) for v in jaxpr.outvars]

    def _whole(self, a: Any) -> Any:
        return whole(a, self.collectives) if is_split(a) else a

    def _of_split(self, equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name in LAYOUT:
            return [_put_off(equation, inputs[0])]
        if name == "jit":
            return self.of(params["jaxpr"].jaxpr, params["jaxpr"].consts, inputs)
        if name == "remat2":
            return self._rematerialised(params, inputs)
        if name == "scan" and any(_is_stack(x) for x in _scanned_over(params, inputs)):
            return self._scanned(params, inputs)
        if next(iter(jaxprs_in_params(params)), None) is not None:  # what a loop or a branch reads, it keeps
            return _as_it_is(equation, [self._whole(a) for a in inputs])
        return self.again(lambda *inputs: _as_it_is(equation, [self._whole(a) for a in inputs]))(*inputs)

    def _rematerialised(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        """A `jax.checkpoint` of the module's: what is read inside is gathered inside, whatever else is saved."""
        theirs = params["policy"]

        def saves(primitive: Any, *avals: Any, **arguments: Any) -> Any:
            return theirs(primitive, *avals, **arguments) if _saves(primitive, **arguments) else False

        inside = dataclasses.replace(self, again=lambda fn: fn)
        checkpoint = functools.partial(jax.checkpoint, prevent_cse=params["prevent_cse"], policy=theirs and saves)
        return checkpoint(lambda *inputs: inside.of(params["jaxpr"], (), inputs))(*inputs)

    def _scanned(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        """A `lax.scan` over layers: each is gathered when it is its turn."""
        num_consts, num_carry, closed = params["num_consts"], params["num_carry"], params["jaxpr"]
        xs = [x if _is_stack(x) else self._whole(x) for x in _scanned_over(params, inputs)]
        fixed = [self._whole(a) for a in inputs[: num_consts + num_carry]]
        again = functools.partial(jax.checkpoint, policy=_saves, prevent_cse=False)  # loops stay apart by themselves
        inside = dataclasses.replace(self, again=again)

        def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            layer = [dataclasses.replace(x, axis=x.axis - 1) if is_split(x) else x for x in xs]
            outputs = inside.of(closed.jaxpr, closed.consts, [*fixed[:num_consts], *carry, *layer])
            return outputs[:num_carry], outputs[num_carry:]

        how = {name: params[name] for name in ("length", "reverse", "unroll")}
        carry, ys = jax.lax.scan(body, fixed[num_consts:], xs, **how)
        return [*carry, *ys]


def _scanned_over(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    return inputs[params["num_consts"] + params["num_carry"] :]


def _is_stack(x: Any) -> bool:
    """Whether it is split inside of each layer, not over the layers."""
    return is_split(x) and x.axis > 0 and not x.then


def _put_off(equation: JaxprEqn, split: Split) -> Split:
    """The parameter in another form: cast before it is gathered, if that is the first thing; the rest comes after."""
    name, params, own = equation.primitive.name, equation.params, split.part.dtype
    if not split.then and name == "transpose":
        order = params["permutation"]
        part = jax.lax.transpose(split.part, order)
        return dataclasses.replace(split, part=part, axis=order.index(split.axis))
    if not split.then and name == "convert_element_type" and split.dtype == own:
        to = params["new_dtype"]
        if jnp.issubdtype(to, jnp.floating) and jnp.issubdtype(own, jnp.floating):
            return dataclasses.replace(split, dtype=to)
    return dataclasses.replace(split, then=(*split.then, equation))
