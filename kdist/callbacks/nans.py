"""TerminateOnNaN: the end of a training that has gone wrong."""

from __future__ import annotations

import math

from kdist.callbacks.base import Callback
from kdist.callbacks.messages import say
from kdist.typing import Logs


class TerminateOnNaN(Callback):
    """Stops when the loss is NaN or infinite.

    It only looks, so it costs no fusing: the batch that it names is the last of the execution in which the loss went
    wrong, and an execution more may have run.  The epoch is then ended as always, with validation.

    To end just before the step that is bad, with good weights, compile with ``nonfinite="stop"`` or ``"raise"``.  With
    any such policy it is settled what becomes of bad steps, and this callback does nothing.

    Args:
        raise_error: Whether to raise a RuntimeError instead, so that nothing that comes at the end of training is done,
            such as the removal of a backup; False by default.

    Example:
        >>> import flax.linen as nn, kdist, numpy as np
        >>> model = kdist.Model(nn.Dense(1))
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((4, 2)), np.full((4, 1), np.inf)
        >>> history = model.fit(x, y, epochs=9, verbose=0, callbacks=TerminateOnNaN())
        Batch 0: Invalid loss, terminating training
        >>> len(history.epoch)
        1
    """

    async_safe = True

    def __init__(self, raise_error: bool = False) -> None:
        super().__init__()
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Looks at the loss, which is the mean of the epoch so far."""
        loss = (logs or {}).get("loss")
        if loss is None or math.isfinite(loss) or getattr(self.model, "nonfinite", None) is not None:
            return
        if self.raise_error:
            raise RuntimeError(
                f"NaN or Inf loss encountered: it is {loss} at batch {batch}. Try a smaller learning rate, clip the "
                "gradients (clipnorm), or look for bad values in the data (fit(check_finite=True))."
            )
        if not self.model.stop_training:
            say(f"Batch {batch}: Invalid loss, terminating training")
        self.model.stop_training = True
