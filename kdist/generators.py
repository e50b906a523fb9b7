"""Keras 2's methods for generators, which `fit`, `evaluate` and `predict` have taken over; a mixin of `Model`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kdist.arguments import check_steps
from kdist.data import BatchLoader, unpack
from kdist.data.arrays import check_batch_size
from kdist.data.batches import as_source
from kdist.data.sources import ByNumber
from kdist.errors import DataError
from kdist.typing import Batch, Logs, PyTree

if TYPE_CHECKING:
    from kdist.callbacks import History


class GeneratorMethods:
    """`fit_generator`, `evaluate_generator` and `predict_generator`, with the checks that Keras 2 made."""

    fit: Callable[..., History]
    evaluate: Callable[..., float | list[Any] | Logs]
    predict: Callable[..., PyTree]

    def fit_generator(
        self,
        generator: Any,
        steps_per_epoch: int | None = None,
        epochs: int = 1,
        verbose: int = 1,
        callbacks: Any = None,
        validation_data: Any = None,
        validation_steps: int | None = None,
        class_weight: Any = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        shuffle: bool = True,
        initial_epoch: int = 0,
    ) -> History:
        """Trains on batches ``(x, y)`` or ``(x, y, sample_weight)``; use `fit`, which takes all of this.

        Args:
            generator: A generator, or an object with batches by number (`__len__` and `__getitem__`).
            steps_per_epoch: Steps of an epoch, neither more nor fewer: batches by number begin again where they end.
                By default as many as the object has; needed with a generator.
            epochs: See `fit`.
            verbose: See `fit`.
            callbacks: See `fit`.
            validation_data: ``(x, y)``, ``(x, y, sample_weight)``, or batches as for `generator`.
            validation_steps: Steps of a validation, needed with a generator.
            class_weight: See `fit`.
            max_queue_size: How many batches at most are read ahead.
            workers: How many threads or processes read batches by number; 0 reads in the calling thread.
            use_multiprocessing: Whether the workers are processes.
            shuffle: Whether batches by number come in an order of their own each epoch; not where
                `steps_per_epoch` is given.
            initial_epoch: See `fit`.

        Returns:
            The History.

        Raises:
            DataError: Steps are missing, or a batch is no tuple of two or three.
            ConfigError: An argument is out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np, warnings
            >>> warnings.simplefilter("ignore", DeprecationWarning)
            >>> model = kdist.Model(nn.Dense(1))
            >>> model.compile("sgd", "mse")
            >>> batches = ((np.ones((4, 2)), np.zeros((4, 1))) for _ in range(6))
            >>> len(model.fit_generator(batches, steps_per_epoch=3, epochs=2, verbose=0).history["loss"])
            2
        """
        _deprecated("fit_generator", "fit")
        reading = (max_queue_size, workers, use_multiprocessing)
        loader = _loader(generator, "steps_per_epoch", steps_per_epoch, reading, _pair, shuffle=shuffle)
        if _yields_batches(validation_data):
            validation_data = _loader(validation_data, "validation_steps", validation_steps, reading, _pair)
            validation_steps = None
        return self.fit(
            loader,
            epochs=epochs,
            verbose=verbose,
            callbacks=callbacks,
            validation_data=validation_data,
            validation_steps=validation_steps,
            class_weight=class_weight,
            initial_epoch=initial_epoch,
        )

    def evaluate_generator(
        self,
        generator: Any,
        steps: int | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        verbose: int = 0,
    ) -> float | list[Any] | Logs:
        """The loss and metrics over batches, each weighted by its rows; use `evaluate`.

        Args:
            generator: As in `fit_generator`.
            steps: How many batches, alike; needed with a generator.
            max_queue_size: As in `fit_generator`.
            workers: As in `fit_generator`.
            use_multiprocessing: As in `fit_generator`.
            verbose: See `evaluate`.

        Returns:
            As `evaluate` does.

        Raises:
            DataError: `steps` is missing, or a batch is empty or no tuple of two or three.
            ConfigError: An argument is out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np, warnings
            >>> warnings.simplefilter("ignore", DeprecationWarning)
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> batches = ((np.ones((4, 2)), np.zeros((4, 1))) for _ in range(6))
            >>> model.evaluate_generator(batches, steps=2)
            4.0
        """
        _deprecated("evaluate_generator", "evaluate")
        reading = (max_queue_size, workers, use_multiprocessing)
        return self.evaluate(_loader(generator, "steps", steps, reading, _pair), verbose=verbose)

    def predict_generator(
        self,
        generator: Any,
        steps: int | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        verbose: int = 0,
    ) -> PyTree:
        """The outputs for batches ``x``, ``(x, y)`` or ``(x, y, sample_weight)``; use `predict`.

        Args:
            generator: As in `fit_generator`.
            steps: How many batches, alike; needed with a generator.
            max_queue_size: As in `fit_generator`.
            workers: As in `fit_generator`.
            use_multiprocessing: As in `fit_generator`.
            verbose: See `predict`.

        Returns:
            As `predict` does.

        Raises:
            DataError: `steps` is missing, or a batch is a tuple of another length.
            ConfigError: An argument is out of its range.

        Example:
            >>> import flax.linen as nn, kdist, numpy as np, warnings
            >>> warnings.simplefilter("ignore", DeprecationWarning)
            >>> model = kdist.Model(nn.Dense(1, kernel_init=nn.initializers.ones))
            >>> model.compile("sgd", "mse")
            >>> batches = ((np.ones((4, 2)), np.zeros((4, 1))) for _ in range(6))
            >>> model.predict_generator(batches, steps=2).shape
            (8, 1)
        """
        _deprecated("predict_generator", "predict")
        reading = (max_queue_size, workers, use_multiprocessing)
        return self.predict(_loader(generator, "steps", steps, reading, _inputs), verbose=verbose)


def _deprecated(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated: {new} takes generators too.", DeprecationWarning, stacklevel=3)


def _loader(
    generator: Any,
    name: str,
    steps: int | None,
    reading: tuple[int, int, bool],
    convert: Callable[[Any], Batch],
    *,
    shuffle: bool = False,
) -> BatchLoader:
    """The loader of a generator, or of an object with batches by number.

    Args:
        generator: Either.
        name: What the number of steps is called.
        steps: The number of steps of an epoch.
        reading: The queue's size, the number of workers, and whether they are processes.
        convert: Makes a batch of what is yielded.
        shuffle: Whether batches by number come in an order of their own.
    """
    queue, workers, processes = reading
    check_batch_size(queue, "max_queue_size")
    steps = check_steps(name, steps)
    numbered = hasattr(generator, "__len__") and hasattr(generator, "__getitem__")
    if numbered:
        shuffle = shuffle and steps is None
        held = ByNumber(generator, shuffle, workers=workers, max_queue_size=queue, use_multiprocessing=processes)
        held.most_ahead = queue
        return BatchLoader(held, steps=steps, convert=convert, repeat=steps is not None)
    if steps is None:
        raise DataError(
            f"{name} is needed with a generator, which may never end. Only an object with batches by number (__len__ "
            "and __getitem__) says how many it has."
        )
    if processes:
        warnings.warn(
            "use_multiprocessing=True has no effect on a generator: processes would each yield all of its batches, and "
            "duplicate the data. It is read by one thread. Pass an object with batches by number to read with several.",
            UserWarning,
            stacklevel=3,
        )
    source = as_source(generator, workers=workers, max_queue_size=queue)
    return BatchLoader(source, steps=steps, convert=convert, repeat=True)


def _yields_batches(data: Any) -> bool:
    """Whether validation data are batches, and no tuple of arrays."""
    numbered = hasattr(data, "__len__") and hasattr(data, "__getitem__") and not hasattr(data, "__array__")
    return isinstance(data, Iterator) or (numbered and not isinstance(data, (tuple, list, dict, str)))


def _pair(item: Any) -> Batch:
    """A batch to train on or evaluate: a tuple of two or three."""
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3) or hasattr(item, "_fields"):
        raise DataError(
            f"A generator must yield (x, y) or (x, y, sample_weight). It yielded a {type(item).__name__}"
            + (f" of {len(item)}." if isinstance(item, (tuple, list)) else f" of shape {np.shape(item)}.")
        )
    return unpack(item)


def _inputs(item: Any) -> Batch:
    """A batch to predict: inputs, or a tuple of two or three whose rest is dropped."""
    if isinstance(item, (tuple, list)) and len(item) not in (2, 3):
        raise DataError(
            f"A generator must yield x, (x, y) or (x, y, sample_weight). It yielded a {type(item).__name__} of "
            f"{len(item)}."
        )
    return unpack((item[0],) if isinstance(item, (tuple, list)) else item)  # a tuple: several inputs are all of x
