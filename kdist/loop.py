"""The host loop: dispatch execution n+1, then read the results of execution n.

And what is said of data that end early or come late.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from kdist.callbacks import CallbackList
from kdist.callbacks.messages import say
from kdist.data import AnyLoader, BatchLoader, Chunk
from kdist.data.advice import next_to_try
from kdist.distribution import agree
from kdist.errors import NonFiniteError
from kdist.passes import Pass, TrainPass
from kdist.stalls import Stalls


def sweep(
    pass_: Pass, chunks: Iterator[Chunk], callbacks: CallbackList, *, seen: int = 0
) -> Iterator[Callable[[], None]]:
    """Runs a pass over chunks.

    At most two executions are ever under way.  Where a callback watches batches, an execution ends and is read before
    the next is dispatched: after each batch, or after every n-th.

    Args:
        pass_: What is run.
        chunks: What it is run on.
        callbacks: Told of every execution, and asked whether they watch.
        seen: The batches of this kind that were run before, in epochs of the same `fit`.

    Yields:
        After each execution, what waits for the results of all that are under way.
    """
    kind, pace = pass_.kind, pass_.binding.pace
    stride, listened = callbacks.stride(kind), callbacks.listens(kind)
    waiting: list[tuple[Any, int]] = []

    def finish() -> None:
        result, last = waiting.pop(0)
        pass_.read(result)
        if listened and pass_.bad_step is None:  # an execution that was ended before its last step is told to nobody
            logs = pass_.logs() if callbacks.reads_logs(kind) else {}
            callbacks.call(f"on_{kind}_batch_end", last, logs)

    def settle() -> None:
        while waiting:
            finish()

    for chunk in chunks:
        start = 0
        while start < chunk.num_steps:
            room = pass_.most_steps if stride is None else min(pass_.most_steps, stride - seen % stride)
            planned = pace.steps(kind, room)
            steps = min(planned, chunk.num_steps - start)
            first = chunk.first_step + start
            if listened:
                callbacks.call(f"on_{kind}_batch_begin", first, {})
            began = time.perf_counter()
            result = pass_.run(chunk, start, steps)
            if pace.is_wanted(kind) and stride != 1:
                jax.block_until_ready(result)
                pace.measure(kind, steps, time.perf_counter() - began)
            start += steps
            seen += steps
            pass_.steps += steps
            # As in Keras, the end of an execution of K steps that was cut short has the index that it was to have.
            waiting.append((result, first + (planned if pace.given else steps) - 1))
            watched = stride is not None and (pace.given is not None or seen % stride == 0)
            while waiting and (watched or len(waiting) > 1):
                finish()
            yield settle
            if _stops(pass_, watched):
                break
        else:
            continue
        break
    settle()


def _stops(pass_: Pass, watched: bool) -> bool:
    """Whether a callback asked to stop here, on several processes process 0's; or the devices did, which all know."""
    if jax.process_count() == 1 or pass_.bad_step is not None:
        return pass_.stopped
    return watched and bool(agree(int(pass_.stopped)))


def warn_if_short(loader: AnyLoader, steps: int, what: str) -> None:
    """Warns that a pass of which so many steps were asked for had fewer."""
    wanted = loader.num_steps
    if wanted is not None and steps < wanted:
        warnings.warn(
            f"Your input ran out of data: {what} had {steps} of {wanted} steps. To have as many in each, provide at "
            "least steps * epochs batches (for instance with `.repeat()`); as it is, the next epoch begins a new pass "
            "over the data.",
            UserWarning,
            stacklevel=4,
        )


def end_if_nonfinite(train: TrainPass, where: str) -> None:
    """Warns of the step that ended training, if one did.

    Raises:
        NonFiniteError: That was asked for.
    """
    if train.bad_step is None:
        return
    message = (
        f"{where}, step {train.bad_step + 1}: the loss or a gradient is NaN or infinite. Training ends, with the "
        "weights before this step. Look for bad values in the data (fit(check_finite=True)), try a smaller learning "
        "rate, or clip the gradients (clipnorm)."
    )
    if train.binding.execution.nonfinite == "raise":
        raise NonFiniteError(message)
    warnings.warn(message, UserWarning, stacklevel=4)


def hint_if_late(loader: AnyLoader, stalls: Stalls) -> None:
    """Says, once a fit, what to try if an epoch waited long for its data."""
    if stalls.is_hint_due():
        say(f"Training waited for data {stalls.share:.0%} of the time. The next thing to try: {next_to_try(loader)}.")


def warn_of_the_end(loader: AnyLoader, consequence: str) -> None:
    """Warns that there are no more batches, and what follows from it."""
    source = loader.source if isinstance(loader, BatchLoader) else "the data"
    warnings.warn(
        f"Your input ran out of data: {source} is exhausted, {consequence}. Pass a function that makes a fresh "
        "iterator, or an object that can be iterated over again.",
        UserWarning,
        stacklevel=4,
    )
