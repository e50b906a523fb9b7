"""The exception classes, which callers catch, and the closest match of an unknown name."""

import pytest

from kdist import errors


@pytest.mark.parametrize(
    "name, bases",
    [
        ("NotCompiledError", (RuntimeError, ValueError)),
        ("NonFiniteError", (FloatingPointError,)),
        ("DataError", (ValueError,)),
        ("ConfigError", (ValueError,)),
        ("CheckpointError", ()),
        ("CheckpointCorruptError", (errors.CheckpointError,)),
        ("CheckpointMismatchError", (errors.CheckpointError,)),
        ("DistributionError", ()),
        ("HangError", ()),
    ],
)
def test_what_each_exception_is(name, bases):
    cls = getattr(errors, name)
    for base in (errors.KDistError, *bases):
        assert issubclass(cls, base)
    assert str(cls("why")) == "why"


@pytest.mark.parametrize(
    "name, hint",
    [
        ("adamm", "Did you mean 'adam'?"),
        ("ADAMW", "Did you mean 'adamw'?"),
        ("Momentum_SGD", "Did you mean 'sgd_momentum'?"),
        ("zzzzzz", None),
        ("", None),
    ],
)
def test_an_unknown_name_gets_its_closest_match(name, hint):
    error = errors.unknown_name("optimizer", name, ["adamw", "adam", "sgd_momentum", "adam"])
    assert isinstance(error, errors.ConfigError)
    text = str(error)
    assert text.startswith(f"Unknown optimizer {name!r}.") and text.endswith("Known: adam, adamw, sgd_momentum.")
    assert ("Did you mean" in text) == (hint is not None)
    if hint:
        assert hint in text
