"""What a training step costs a device: arithmetic from what was traced, collectives from what was compiled.

XLA's own cost analysis counts the body of a loop once, and a model that scans over its layers is such a loop.  Here
what is in a loop counts as often as it runs; the loop over the steps of an execution, whose length is an argument,
counts once.
"""

from __future__ import annotations

import collections as _collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "all-gather": lambda size, n: size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "ragged-all-to-all": lambda size, n: size * (n - 1) / n,
    "collective-permute": lambda size, n: size,
    "collective-broadcast": lambda size, n: size,
}
"""Bytes that each of n devices sends by a ring, from those of the result (Patarasuk and Yuan, 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations")."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_REFUSED = re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]*)\}x.*?_xla_megascale_transfer_type="(\w+)"')
_GROUP = re.compile(r"replica_groups=(?:\{\{([0-9,]*)\}|\[\d+,(\d+)\]|mesh\[(.*?)\][^{]* \{(.*?)\})")


@dataclasses.dataclass(frozen=True)
class Moved:
    """Collectives of one kind among groups of one size.

    Attributes:
        kind: Such as "all-reduce".
        group: The devices that take part in each.
        count: How many a step has.
        sent: Bytes that a device sends in them.
        between: Whether they go from slice to slice, over the network of the data centre; False by default.
    """

    kind: str
    group: int
    count: int
    sent: float
    between: bool = False


class Work(NamedTuple):
    """The matrix multiplications and convolutions of a device.

    Attributes:
        flops: Multiplications and additions.
        memory_bytes: The bytes of their operands and results: what is between them is taken to be fused into them.
    """

    flops: float
    memory_bytes: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    result: str
    opcode: str
    arguments: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments.split(")")[0])

    @property
    def called(self) -> list[str]:
        branches = ", ".join(_BRANCHES.findall(self.arguments))
        return [*_CALLED.findall(self.arguments), *re.findall(r"[\w.\-]+", branches)]


@dataclasses.dataclass
class _Computation:
    instructions: list[_Instruction] = dataclasses.field(default_factory=list)
    results: dict[str, str] = dataclasses.field(default_factory=dict)


class Need(NamedTuple):
    """What compiling a program says of it.

    Attributes:
        temporary_bytes: Of a device's memory, beside what the program is given: at its peak.
        text: The compiled program; empty if the compiler refused it, for want of memory.
    """

    temporary_bytes: int
    text: str


def need(lowered: jax.stages.Lowered) -> Need:
    """Compiles a program, and says what it needs; it is not run.

    Args:
        lowered: The program.

    Example:
        >>> import jax.numpy as jnp
        >>> need(jax.jit(lambda a: a + 1).lower(jnp.ones(1000))).text.split()[0]
        'HloModule'
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise
        return Need(int(float(refused[1]) * 1024 ** " KMGT".index(refused[2] or " ")), "")
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None
    beside = memory.peak_memory_in_bytes - memory.argument_size_in_bytes
    if beside <= memory.output_size_in_bytes:  # the peak is known on TPUs; elsewhere the sum of all there ever is
        beside = memory.temp_size_in_bytes
    return Need(beside + memory.generated_code_size_in_bytes, text)


def work(jaxpr: Any) -> Work:
    """The arithmetic of a traced program, on one device where it is inside `shard_map`.

    Args:
        jaxpr: A `jax.core.Jaxpr`, closed or not.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def layers(x, kernels):
        ...     return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]
        >>> work(jax.make_jaxpr(layers)(jnp.ones((2, 4)), jnp.ones((3, 4, 4))))
        Work(flops=192.0, memory_bytes=384.0)
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    flops = memory = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in _FLOPS:
            avals = [v.aval for v in (*equation.invars, *equation.outvars)]
            flops += _FLOPS[name](*avals, params)
            memory += sum(a.size * a.dtype.itemsize for a in avals)
            continue
        times = params["length"] if name == "scan" else 1
        inside = [work(inner) for inner in jaxprs_in_params(params)]
        parts = [max(inside, default=Work(0.0, 0.0))] if name == "cond" else inside
        flops += times * sum(part.flops for part in parts)
        memory += times * sum(part.memory_bytes for part in parts)
    return Work(flops, memory)


def _dot_flops(left: Any, right: Any, out: Any, params: dict[str, Any]) -> float:
    (contracted, _), _ = params["dimension_numbers"]
    return 2.0 * out.size * math.prod(left.shape[i] for i in contracted)


def _conv_flops(left: Any, right: Any, out: Any, params: dict[str, Any]) -> float:
    """Each output is a sum over the kernel but for its output channels."""
    return 2.0 * out.size * right.size / right.shape[params["dimension_numbers"].rhs_spec[0]]


_FLOPS: dict[str, Callable[..., float]] = {"dot_general": _dot_flops, "conv_general_dilated": _conv_flops}


def collectives(text: str) -> list[Moved]:
    """The collectives of one step of a compiled program, by kind and size of groups.

    Args:
        text: The text of the program, ``compiled.as_text()``.

    Example:
        >>> collectives('''
        ... ENTRY %main (a: f32[8]) -> f32[8] {
        ...   %a = f32[8]{0} parameter(0)
        ...   ROOT %sum = f32[8]{0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
        ... }''')
        [Moved(kind='all-reduce', group=2, count=1, sent=32.0, between=False)]
    """
    computations, entry = _parsed(text)
    if not entry:
        raise ValueError("There is no program in this text.")
    found: dict[tuple[str, int, bool, str], tuple[int, float]] = {}
    for computation, instruction, times, fused in _walk(computations, entry, times=1, fused=False):
        # From slice to slice, TPU programs hand a collective to the host, which sends, and wait for what they receive.
        between = _BETWEEN_SLICES.search(instruction.arguments) if instruction.opcode == "recv" else None
        kind = between[2].lower().replace("_", "-") if between else instruction.opcode.removesuffix("-start")
        if kind not in SENT:
            continue
        size = _bytes(instruction.result)
        if between:  # beside the result it holds a context
            size -= _bytes("u32[]")
        elif kind != instruction.opcode and kind != "all-reduce":  # beside the result it holds the operands
            size -= sum(_bytes(computation.results.get(name, "")) for name in instruction.operands)
        n = _count(between[1]) if between else _group_size(instruction.arguments)
        # Of a collective that is hidden behind computation, TPU programs hold copies in fusions, which share a channel.
        channel = re.search(r"channel_id=\d+", instruction.arguments) if fused else None
        key = kind, n, between is not None, channel[0] if channel else instruction.name
        found[key] = max(found.get(key, (0, 0.0)), (times, times * SENT[kind](size, n)))
    totals: dict[tuple[str, int, bool], list[tuple[int, float]]] = _collections.defaultdict(list)
    for (kind, n, beyond, _), moved in found.items():
        if n > 1:
            totals[kind, n, beyond].append(moved)
    return [
        Moved(kind, n, sum(c for c, _ in each), sum(b for _, b in each), beyond)
        for (kind, n, beyond), each in sorted(totals.items())
    ]


def _parsed(text: str) -> tuple[dict[str, _Computation], str]:
    """The computations of a program by name, and the name of its entry."""
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header[2]] = _Computation()
            entry = header[2] if header[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            current.instructions.append(_Instruction(found[1], found[2], found[3], found[4]))
            current.results[found[1]] = found[2]
    return computations, entry


def _walk(
    computations: dict[str, _Computation], name: str, *, times: int, fused: bool
) -> Iterator[tuple[_Computation, _Instruction, int, bool]]:
    """Each instruction that runs, with its computation, how often, and whether it is part of a fusion."""
    computation = computations[name]
    for instruction in computation.instructions:
        yield computation, instruction, times, fused
        if instruction.opcode in SENT:
            continue
        trips = _trips(computations, instruction.arguments) if instruction.opcode == "while" else 1
        inside = fused or instruction.opcode == "fusion"
        for called in instruction.called:
            yield from _walk(computations, called, times=times * trips, fused=inside)


def _trips(computations: dict[str, _Computation], arguments: str) -> int:
    """How often a loop runs, if its counter, from 0, is compared with a constant; else 1."""
    condition = re.search(r"condition=%?([\w.\-]+)", arguments)
    constants = [
        int(i.arguments.split(")")[0])
        for i in (computations[condition[1]].instructions if condition else [])
        if i.opcode == "constant" and i.result.startswith("s32[]")
    ]
    return max([1, *constants])


def _group_size(arguments: str) -> int:
    """How many devices a collective is among; XLA writes them as lists, as a shape, or as axes of a mesh."""
    pairs = _PAIRS.search(arguments)
    if pairs is not None:  # a permutation: from each device to another
        return pairs[1].count("{")
    group = _GROUP.search(arguments)
    if group is None:
        return 1
    if group[3] is not None:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", group[3]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", group[4])  # 'axis':(stride)size is a part of an axis
        return math.prod(int(size or sizes[axis]) for axis, size in parts)
    return int(group[2] or len(group[1].split(",")))


def _count(numbers: str) -> int:
    """How many there are in a list such as "1,2" or "1:4,7"."""
    ranges = [[int(end) for end in part.split(":")] for part in numbers.split(",")]
    return sum(ends[-1] - ends[0] + 1 for ends in ranges)


def _bytes(shape: str) -> int:
    """The bytes of a shape, tuples too."""
    total = 0
    for dtype, dims in _ARRAY.findall(shape):
        digits = re.search(r"\d+", dtype)
        bits = 8 if dtype == "pred" else int(digits[0]) if digits else 0
        total += math.prod(int(n) for n in dims.split(",") if n) * bits // 8
    return total
