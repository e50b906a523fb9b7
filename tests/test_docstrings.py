"""Every public name is documented to one pattern: its arguments by name, with their defaults, and an example.

That the examples run and print what they say, `--doctest-modules` sees to.
"""

import ast
import importlib
import inspect
import re
import textwrap

import pytest

import kdist

PACKAGES = (
    "kdist",
    "kdist.callbacks",
    "kdist.checkpoint",
    "kdist.data",
    "kdist.distribution",
    "kdist.losses",
    "kdist.metrics",
    "kdist.optimizers",
    "kdist.optimizers.schedules",
)
WITH_METHODS = (
    "kdist.Config",
    "kdist.DataParallel",
    "kdist.Model",
    "kdist.Sequential",
    "kdist.Trainer",
    "kdist.losses.Loss",
    "kdist.metrics.Metric",
    "kdist.optimizers.Optimizer",
    "kdist.optimizers.schedules.LearningRateSchedule",
)
"""Classes that users call methods of, or override them."""

ENTRY = re.compile(r"((?:\*{0,2}\w+, )*\*{0,2}\w+): (.+)")
REFERENCE = re.compile(r"\b(?:as in|see) `([\w.]+)`", re.IGNORECASE)


def public_names():
    """Classes and functions, by the name that users know them by."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        things = {name: getattr(module, name) for name in module.__all__}
        found |= {f"{package}.{n}": t for n, t in things.items() if inspect.isclass(t) or inspect.isfunction(t)}
    for owner in WITH_METHODS:
        methods = {name: m for name, m in vars(found[owner]).items() if inspect.isfunction(m)}
        found |= {f"{owner}.{name}": method for name, method in methods.items() if not name.startswith("_")}
    return found


PUBLIC = public_names()


def parameters(thing):
    """Those of a call; a protocol is not called."""
    if getattr(thing, "_is_protocol", False):
        return {}
    return {name: p for name, p in inspect.signature(thing).parameters.items() if name != "self"}


def doc(thing):
    return inspect.getdoc(thing) or ""


def section(thing, title):
    """What a section such as ``Args:`` says, by name; several may share an entry: ``name, dtype: ...``."""
    found = re.search(rf"^{title}:\n((?: .*\n|\n)+)", doc(thing) + "\n", re.MULTILINE)
    lines = re.sub(r"\n +", " ", textwrap.dedent(found[1])).splitlines() if found else []
    entries = [match.groups() for match in map(ENTRY.fullmatch, lines) if match]
    return {name: text for names, text in entries for name in names.replace("*", "").split(", ")}


def is_record(thing):
    return hasattr(thing, "__dataclass_fields__") or hasattr(thing, "_fields")


def arguments(thing):
    """What is said of each argument; those of a record, whose fields they are, may be among its attributes."""
    return section(thing, "Args") | (section(thing, "Attributes") if is_record(thing) else {})


def raised(thing):
    """The errors of kdist that its own code raises, by name."""
    if inspect.isclass(thing):
        thing = vars(thing).get("__post_init__") if is_record(thing) else thing.__init__
    if not inspect.isfunction(thing):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    calls = [node.exc.func for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    return {"ConfigError" if name == "unknown_name" else name for name in names} & vars(kdist.errors).keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name):
    assert re.search(r"^Example:\n(?:    .*\n|\n)*?    >>> ", doc(PUBLIC[name]), re.M), f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_argument_is_explained(name):
    explained, there = section(PUBLIC[name], "Args"), parameters(PUBLIC[name])
    missing = [p for p in there if p not in arguments(PUBLIC[name])]
    assert not missing, f"{name} does not say what {missing} mean"
    gone = [p for p in explained if p not in there]
    assert not gone, f"{name} explains {gone}, which it does not take"


@pytest.mark.parametrize("name", PUBLIC)
def test_defaults_are_given(name):
    said = arguments(PUBLIC[name])
    defaults = {n: p.default for n, p in parameters(PUBLIC[name]).items() if p.default is not p.empty}
    untold = {n: default for n, default in defaults.items() if not tells_default(said.get(n, ""))}
    assert not untold, f"{name} does not give these defaults: {untold}"


def tells_default(text):
    """Whether a text says what the default is, or where that is said."""
    return "default" in text or REFERENCE.search(text)


@pytest.mark.parametrize("name", PUBLIC)
def test_errors_are_named(name):
    silent = raised(PUBLIC[name]) - section(PUBLIC[name], "Raises").keys()
    assert not silent, f"{name} does not say that it raises {silent}"


@pytest.mark.parametrize("name", PUBLIC)
def test_what_it_refers_to_is_public(name):
    hidden = [there for there in REFERENCE.findall(doc(PUBLIC[name])) if not is_public(there, name)]
    assert not hidden, f"{name} refers to {hidden}, which its readers cannot find"


def is_public(there, here):
    """Whether a name is one of the public ones, or of their attributes, as seen from where it is mentioned."""
    scope = here.split(".")
    for depth in range(len(scope)):
        absolute = ".".join([*scope[:depth], there])
        owner, _, attribute = absolute.rpartition(".")
        if absolute in PUBLIC or (not attribute.startswith("_") and hasattr(PUBLIC.get(owner), attribute)):
            return True
    return False


def test_what_hooks_get_is_said_where_hooks_are():
    hooks = [hook for name, hook in vars(kdist.callbacks.Callback).items() if name.startswith(("on_", "set_"))]
    told = {*re.findall(r"`(\w+)`", doc(kdist.callbacks.Callback)), *section(kdist.callbacks.Callback, "Attributes")}
    assert hooks and all(map(inspect.getdoc, hooks))
    assert {name for hook in hooks for name in parameters(hook)} <= told
