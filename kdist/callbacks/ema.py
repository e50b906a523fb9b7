"""SwapEMAWeights: evaluation with the averaged weights that an optimizer with ``use_ema=True`` keeps."""

from __future__ import annotations

import dataclasses

from kdist import optimizers
from kdist.callbacks.base import Callback
from kdist.callbacks.variables import copied
from kdist.errors import ConfigError
from kdist.typing import Logs, PyTree


class SwapEMAWeights(Callback):
    """Puts the averages in the place of the parameters while the model is evaluated or predicts.

    The parameters are kept aside and come back afterwards; the averages stay in the optimizer's state.

    Args:
        swap_on_epoch: Whether the averages are also there from the end of an epoch to the next, for callbacks after
            this one, such as a ModelCheckpoint, and at the end of training; False by default.

    Raises:
        ConfigError: When it begins, if the optimizer keeps no averages.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile(kdist.optimizers.SGD(use_ema=True), "mse")
        >>> x, y = np.ones((8, 3)), np.zeros((8, 1))
        >>> history = model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=SwapEMAWeights())
        >>> sorted(history.history)
        ['loss', 'val_loss']
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        super().__init__()
        self.swap_on_epoch = swap_on_epoch
        self._aside: PyTree = None
        self._for_epoch = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Looks whether there are averages."""
        self._averages()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Training goes on with the parameters."""
        self._for_epoch = False
        self._put_back()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """The averages come in, if that was asked for."""
        if self.swap_on_epoch:
            self._put_in()
            self._for_epoch = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        """The averages, if they are in, stay."""
        self._aside = None
        self._for_epoch = False

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """The averages come in."""
        self._put_in()

    def on_test_end(self, logs: Logs | None = None) -> None:
        """The parameters come back, unless the averages are in for the whole of the epoch's end."""
        if not self._for_epoch:
            self._put_back()

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """The averages come in."""
        self._put_in()

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """The parameters come back."""
        self.on_test_end()

    def close(self) -> None:
        """The parameters come back after an exception, too."""
        self._for_epoch = False
        self._put_back()

    def _averages(self) -> PyTree:
        averages = optimizers.ema_params(self.model.state.opt_state, self.model.state.params)
        if averages is None:
            raise ConfigError("SwapEMAWeights needs an optimizer that keeps averages: build it with use_ema=True.")
        return averages

    def _put_in(self) -> None:
        if self._aside is None:
            state = self.model.state
            # A copy: the step uses up parameters and optimizer state, which must not share buffers.
            averages = copied(self._averages())
            self._aside = state.params
            self.model.state = dataclasses.replace(state, params=averages)

    def _put_back(self) -> None:
        if self._aside is not None:
            self.model.state = dataclasses.replace(self.model.state, params=self._aside)
            self._aside = None
