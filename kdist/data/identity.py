"""What a thing is, in a text that is the same in every run of a script: what a fingerprint of data is made of.

Functions are told by their code, objects by their class and simple settings, data by some of their rows.  Nothing may
enter that differs between two runs: no address, no order of a set, and no text that an object makes of itself.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import operator
import types
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from kdist.data.sources import as_data_error

SAMPLE = 16
"""Of data so many rows are read, from the first to the last: they may be files."""
ELEMENTS = 1 << 16
"""Of an array so many elements enter, at equal distances."""
LONGEST = 200
"""A longer text is replaced by its checksum."""
NOT_SETTINGS = frozenset(
    (
        "_parents _dataset _datasets _original_source_map_dataset _record_keys _map_fn "  # told elsewhere
        "_generator_cache _lock has_child "  # held for a while
        "_multiprocessing_options _read_options _num_make_iter_threads _make_iter_buffer_size _iter_buffer_size "
        "_record_metrics"
    ).split()
)
"""Fields of grain's objects that decide nothing: who reads, and how far ahead, among them."""


def identity(thing: Any) -> str:
    """What a thing is: a function, a transform, a grain dataset, a number and so on.

    Args:
        thing: Anything; of what is not known no more than the name of its class is told.

    Example:
        >>> identity(functools.partial(max, 3))
        'partial(max, 3)'
        >>> identity(lambda row: row + 1) == identity(lambda row: row + 2)
        False
    """
    return _Identity().of(thing)


def stages(dataset: Any) -> list[str]:
    """What a grain dataset does, from its source on: a text for each step.

    Args:
        dataset: A `grain.MapDataset` or `grain.IterDataset`.

    Example:
        >>> import grain
        >>> stages(grain.MapDataset.source([5, 6]).shuffle(seed=1))
        ['SourceMapDataset(source=list of 2 rows #2c5245d0)', 'ShuffleMapDataset(seed=1)']
    """
    return _Identity().stages(dataset)


def closed_over(function: Callable[..., Any]) -> list[str]:
    """What a function made of something holds: that, and not its own code.

    Args:
        function: A function that is defined in another.

    Example:
        >>> numbers = [1, 2]
        >>> closed_over((lambda numbers: lambda: iter(numbers))(numbers))
        ['[1, 2]']
    """
    return [identity(value) for value in inspect.getclosurevars(function).nonlocals.values()]


def rows_identity(source: Any) -> str:
    """What data by number are: how many rows, and a checksum of some; or what ``source.fingerprint()`` says.

    Args:
        source: Has `__len__` and `__getitem__`.

    Raises:
        DataError: A row could not be read.

    Example:
        >>> rows_identity([1, 2]), rows_identity([1, 3])
        ('list of 2 rows #4f5344cd', 'list of 2 rows #3854745b')
    """
    name, own = type(source).__qualname__, getattr(source, "fingerprint", None)
    if callable(own):
        return f"{name}({identity(own())})"
    count = len(source)
    checksum = _sample(source, count, name)
    # Rows that a source itself draws at random are others each time, and say nothing.
    drawn = checksum != _sample(source, count, name)
    return f"{name} of {count} rows" + (", drawn at random" if drawn else f" #{checksum:08x}")


def checksum_of(content: Any, before: int = 0) -> int:
    """A checksum of a row: of numbers, texts and arrays, and of tuples, lists and dicts of them.

    Args:
        content: The row.
        before: The checksum of what came before it; 0 by default.

    Example:
        >>> checksum_of((np.ones(2), 3)) == checksum_of((np.ones(2), 4))
        False
    """
    if isinstance(content, Mapping):
        return functools.reduce(lambda crc, item: checksum_of(item, crc), content.items(), before)
    if isinstance(content, (list, tuple)):
        some = [content[i] for i in _spread(len(content), ELEMENTS)]
        return functools.reduce(
            lambda crc, item: checksum_of(item, crc), some, zlib.crc32(b"%d" % len(content), before)
        )
    if isinstance(content, bytes):
        return zlib.crc32(content, before)
    if isinstance(content, (str, bool, int, float, complex)) or content is None:
        return zlib.crc32(repr(content).encode(), before)
    if hasattr(content, "__array__") or hasattr(content, "__array_interface__"):
        array = np.asarray(content)
        if not array.dtype.hasobject:
            elements = array.reshape(-1)[:: max(1, array.size // ELEMENTS)]
            return zlib.crc32(elements.tobytes(), zlib.crc32(f"{array.dtype}{array.shape}".encode(), before))
    return zlib.crc32(type(content).__qualname__.encode(), before)


def _sample(source: Any, count: int, name: str) -> int:
    checksum = 0
    for row in _spread(count, SAMPLE):
        with as_data_error(f"Row {row} of the {name} could not be read"):
            checksum = checksum_of(source[row], checksum)
    return checksum


def _spread(count: int, most: int) -> list[int]:
    """Numbers from 0 to `count`, at equal distances, the first and the last among them."""
    return list(range(count)) if count <= most else [i * (count - 1) // (most - 1) for i in range(most)]


class _Identity:
    """Tells what things are, each function and object once: they may refer to each other."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}

    def of(self, thing: Any, *, whole: bool = True) -> str:
        """What a thing is.

        Args:
            thing: The thing.
            whole: Whether the settings of an object of any class are told, and not of a transform or dataset alone.
        """
        if isinstance(thing, enum.Enum):
            return f"{type(thing).__qualname__}.{thing.name}"
        if isinstance(thing, np.generic):
            thing = thing.item()
        if thing is None or thing is ... or isinstance(thing, (bool, int, float, complex, slice, range, np.dtype)):
            return repr(thing)
        if isinstance(thing, (str, bytes)):
            return _short(repr(thing), type(thing).__name__)
        if isinstance(thing, jax.Array) and jax.dtypes.issubdtype(thing.dtype, jax.dtypes.prng_key):
            thing = jax.random.key_data(thing)
        if isinstance(thing, (np.ndarray, jax.Array)):
            return f"{thing.dtype}{list(thing.shape)}#{checksum_of(thing):08x}"
        if isinstance(thing, (set, frozenset)):
            return _short(f"{{{', '.join(sorted(map(self._part, thing)))}}}", "set")
        if isinstance(thing, types.CodeType):
            return f"{thing.co_name}#{zlib.crc32(self._code(thing).encode()):08x}"
        if not isinstance(thing, tuple):  # tuples hold no cycles, and whether two are one is up to the compiler
            if id(thing) in self._seen:
                return _name(thing)
            self._seen[id(thing)] = thing  # held, so that nothing else gets its id
        if isinstance(thing, (list, tuple)):
            if len(thing) > SAMPLE:
                return rows_identity(thing)
            return _short(f"[{', '.join(map(self._part, thing))}]", type(thing).__name__)
        if isinstance(thing, dict):
            told = [f"{self._part(name)}: {self._part(value)}" for name, value in thing.items()]
            return _short(f"{{{', '.join(told)}}}", "dict")
        return self._of_object(thing, whole)

    def _part(self, thing: Any) -> str:
        return self.of(thing, whole=False)

    def _of_object(self, thing: Any, whole: bool) -> str:
        if isinstance(thing, types.FunctionType):
            if (thing.__module__ or "").startswith("grain."):
                return _name(thing)
            return f"{thing.__qualname__}#{zlib.crc32(self._function(thing).encode()):08x}"
        if isinstance(thing, types.MethodType):
            return f"{self._part(thing.__func__)} of {self.of(thing.__self__)}"
        if isinstance(thing, functools.partial):
            named = [f"{name}={self._part(value)}" for name, value in thing.keywords.items()]
            return f"partial({', '.join([self.of(thing.func), *map(self._part, thing.args), *named])})"
        if isinstance(thing, (operator.itemgetter, operator.attrgetter, operator.methodcaller)):
            return f"{_name(thing)}({', '.join(map(self._part, thing.__reduce__()[1]))})"
        if isinstance(thing, (type, types.BuiltinFunctionType, np.ufunc)):
            return _name(thing)
        if _is_grain_dataset(thing):
            return " > ".join(self.stages(thing))
        if hasattr(thing, "__wrapped__"):  # of jax.jit, for instance
            return self.of(thing.__wrapped__)
        if inspect.isgenerator(thing):
            return self._part(thing.gi_code)
        if whole or callable(thing) or dataclasses.is_dataclass(thing) or _is_of_grain(thing):
            return f"{_name(thing)}({self._settings(thing)}){self._methods(type(thing))}"
        return _name(thing)

    def _settings(self, thing: Any) -> str:
        """The fields of an object."""
        if dataclasses.is_dataclass(thing):
            fields = {field.name: getattr(thing, field.name, None) for field in dataclasses.fields(thing)}
        else:
            fields = getattr(thing, "__dict__", {})
        if not _is_grain(thing):
            return _short(", ".join(f"{name}={self._part(value)}" for name, value in fields.items()), "settings")
        told = []
        for name, value in fields.items():
            computed = isinstance(getattr(type(thing), name, None), functools.cached_property)
            if value is None or computed or name in NOT_SETTINGS:
                continue
            rows = name in ("_source", "_data_source") and not _is_grain_dataset(value)
            told.append(f"{name.lstrip('_')}={rows_identity(value) if rows else self._part(value)}")
        return ", ".join(told)

    def _methods(self, kind: type) -> str:
        """The code of an object's own methods."""
        if kind.__module__.partition(".")[0] in ("grain", "builtins"):
            return ""
        own = [
            value
            for name, value in vars(kind).items()
            if isinstance(value, types.FunctionType) and (name == "__call__" or not name.startswith("__"))
        ]
        return f"#{zlib.crc32(', '.join(map(self._part, own)).encode()):08x}" if own else ""

    def stages(self, dataset: Any) -> list[str]:
        """What a grain dataset does, from its source on; who reads ahead changes no data."""
        parents = [self.stages(parent) for parent in dataset._parents or vars(dataset).get("_datasets", ())[:SAMPLE]]
        several = ["(" + " | ".join(" > ".join(stages) for stages in parents) + ")"]
        before = parents[0] if len(parents) == 1 else several if parents else []
        if "Prefetch" in type(dataset).__name__:
            return before
        return [*before, f"{_name(dataset)}({self._settings(dataset)}){self._methods(type(dataset))}"]

    def _function(self, function: types.FunctionType) -> str:
        """The code of a function, and the simple values and functions that it uses."""
        cells = [cell for cell in function.__closure__ or () if _is_full(cell)]
        values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        names = sorted(_names(function.__code__))
        used = [function.__globals__[name] for name in names if name in function.__globals__]
        simple = [v for v in used if isinstance(v, (bool, int, float, str)) or _is_beside(v, function)]
        closed = [cell.cell_contents for cell in cells]
        return ", ".join([self._code(function.__code__), *map(self._part, [*values, *closed, *simple])])

    def _code(self, code: types.CodeType) -> str:
        consts = ", ".join(map(self._part, code.co_consts))
        return f"{zlib.crc32(code.co_code):08x}({consts})({', '.join(code.co_names)})"


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or type(thing).__qualname__


def _short(text: str, kind: str) -> str:
    return text if len(text) <= LONGEST else f"{kind}#{zlib.crc32(text.encode()):08x}"


def _is_grain(thing: Any) -> bool:
    """Whether it is an object of grain's own, or a dataset."""
    return type(thing).__module__.startswith("grain.") or _is_grain_dataset(thing)


def _is_of_grain(thing: Any) -> bool:
    """Whether its class is one of grain's or made from one, as transforms are."""
    return any(c.__module__.startswith("grain.") for c in type(thing).__mro__)


def _is_grain_dataset(thing: Any) -> bool:
    names = ("MapDataset", "IterDataset")
    return any(c.__module__.startswith("grain.") and c.__name__ in names for c in type(thing).__mro__)


def _is_full(cell: types.CellType) -> bool:
    """Whether a variable of an outer function has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _names(code: types.CodeType) -> Iterable[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return {*code.co_names, *(name for each in inner for name in _names(each))}


def _is_beside(value: Any, function: types.FunctionType) -> bool:
    """Whether it is a function of the same module."""
    return isinstance(value, types.FunctionType) and value.__module__ == function.__module__
