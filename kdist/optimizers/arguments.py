"""The arguments that all optimizers share, and how a constructor gets Keras's whole signature from its own part."""

from __future__ import annotations

import functools
import inspect
import numbers
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, TypeGuard, TypeVar, cast

from kdist.errors import ConfigError, unknown_name

Schedule = Callable[[Any], Any]
"""A learning rate as a function of the step, counted from 0."""

LearningRate = float | int | Schedule | Callable[[], Any]
"""A number, a schedule, or a function of nothing that is called once, when training starts."""


class CommonExceptDecay(TypedDict, total=False):
    """What every optimizer takes, after its own arguments; `Optimizer` says what they do."""

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


class CommonArguments(CommonExceptDecay, total=False):
    """The same, of those that do not name the weight decay themselves."""

    weight_decay: float | None


COMMON_DEFAULTS: CommonArguments = {
    "weight_decay": None,
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "name": None,
}

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def keras_signature(init: Constructor) -> Constructor:
    """Gives a constructor that ends in ``**common`` the signature of Keras's class, by position too.

    The common arguments stand behind its own; those that it marks as keyword-only stand behind the
    common ones.  Unknown keywords get a suggestion, and `decay` only a warning, as in Keras.
    """
    self, *own = inspect.signature(init).parameters.values()
    named = {p.name for p in own}
    common = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in COMMON_DEFAULTS.items()
        if name not in named
    ]
    before = [p for p in own if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    after = [
        p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in own if p.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    signature = inspect.Signature([self, *before, *common, *after])

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **keywords: Any) -> None:
        if keywords.pop("decay", None) is not None:
            warnings.warn(
                "The argument decay is ignored, as in Keras 3: use a schedule, such as "
                "kdist.optimizers.schedules.InverseTimeDecay, as learning_rate.",
                stacklevel=2,
            )
        refuse_unknown(type(self).__name__, keywords, list(signature.parameters)[1:])
        init(**signature.bind(self, *args, **keywords).arguments)

    cast(Any, checked).__signature__ = signature
    return cast(Constructor, checked)


def refuse_unknown(cls: str, keywords: dict[str, Any], known: Sequence[str]) -> None:
    """Raises a ConfigError for the first keyword that is not known.

    Args:
        cls: The class that they were passed to.
        keywords: What was passed.
        known: What it takes.
    """
    for name in keywords:
        if name == "lr" and "learning_rate" in known:
            raise ConfigError(f"Unknown argument of {cls} 'lr'. Did you mean 'learning_rate'?")
        if name not in known:
            raise unknown_name(f"argument of {cls}", name, known)


def is_number(value: Any) -> bool:
    """Whether it is a real number; a bool is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any, at_least: int) -> bool:
    """Whether it is an integer that is large enough; a bool is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= at_least


def strings(argument: str, given: Iterable[str] | None) -> list[str]:
    """A list of strings from what was passed; one alone counts as a list of one.

    Raises:
        ConfigError: Something in it is no string.
    """
    found = [] if given is None else [given] if isinstance(given, str) else list(given)
    if not all(isinstance(s, str) for s in found):
        raise ConfigError(f"{argument} must be a list of strings, such as ['dense/kernel']. Received: {found!r}.")
    return found


def takes_step(learning_rate: Callable[..., Any]) -> TypeGuard[Schedule]:
    """Whether a callable is a schedule: false where it takes no argument."""
    try:
        inspect.signature(learning_rate).bind(0)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def check_common(options: CommonArguments) -> None:
    """Checks the common arguments.

    Raises:
        ConfigError: One is out of its range, or clips are combined.
    """
    decay, factor = options["weight_decay"], options["loss_scale_factor"]
    if decay is not None and not is_number(decay):
        raise ConfigError(f"weight_decay must be a number or None. Received: {decay!r}.")
    clips = {
        "clipnorm": options["clipnorm"],
        "clipvalue": options["clipvalue"],
        "global_clipnorm": options["global_clipnorm"],
    }
    given = {name: value for name, value in clips.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"Only one of clipnorm, clipvalue and global_clipnorm can be set. Received: {given}.")
    if not all(is_number(value) and value > 0 for value in given.values()):
        raise ConfigError(f"A clip must be positive. Received: {given}.")
    if factor is not None and not (is_number(factor) and factor > 0):
        raise ConfigError(f"loss_scale_factor must be positive or None. Received: {factor!r}.")
    if options["use_ema"]:
        momentum, frequency = options["ema_momentum"], options["ema_overwrite_frequency"]
        if not is_number(momentum) or not 0 <= momentum <= 1:
            raise ConfigError(f"ema_momentum must lie in [0, 1]. Received: {momentum!r}.")
        if frequency is not None and not is_whole(frequency, 1):
            raise ConfigError(f"ema_overwrite_frequency must be a positive integer or None. Received: {frequency!r}.")
    steps = options["gradient_accumulation_steps"]
    if steps is not None and not is_whole(steps, 2):
        raise ConfigError(f"gradient_accumulation_steps must be an integer of 2 or more. Received: {steps!r}.")
