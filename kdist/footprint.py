"""What a training program needs of a device: read off the program, compiled for that, and not run."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from kdist.data import CHUNKS_AHEAD, shapes_of_chunk
from kdist.distribution import DataParallel, bytes_a_device
from kdist.execution import Execution
from kdist.programs import need
from kdist.state import TrainState
from kdist.typing import Batch


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What a device needs for a step of training.

    Attributes:
        params_bytes: Of the parameters and of other variables.
        opt_bytes: Of the optimizer's state.
        batch_bytes: Of the chunks of batches that lie there at a time: the one in use, and those prepared.
        temporary_bytes: Of all else that the program needs while it runs: activations, gradients, what is gathered.
        jaxpr: The program as it was traced.
        text: The program as it was compiled; empty if the compiler refused it, since it cannot fit.
        compile_seconds: What that took.
    """

    params_bytes: int
    opt_bytes: int
    batch_bytes: int
    temporary_bytes: int
    jaxpr: Any
    text: str
    compile_seconds: float

    @property
    def bytes(self) -> int:
        """All that is needed of a device's memory."""
        return self.params_bytes + self.opt_bytes + self.batch_bytes + self.temporary_bytes


def footprint(
    execution: Execution, state: TrainState, batch: Batch, distribution: DataParallel, microbatches: int
) -> Footprint:
    """Compiles a training program, and says what it needs.

    Args:
        execution: What has the program.
        state: A state of the model, or its shapes.
        batch: A global batch, arrays or shapes.
        distribution: The devices.
        microbatches: The parts that a shard's rows are worked through in.
    """
    feed = shapes_of_chunk(batch, distribution, distribution.num_devices * microbatches)
    traced = execution.trace(state, feed)
    began = time.perf_counter()
    needed = need(traced.lower())
    return Footprint(
        params_bytes=bytes_a_device((state.params, state.model_state)),
        opt_bytes=bytes_a_device(state.opt_state),
        batch_bytes=bytes_a_device(feed) * (1 + CHUNKS_AHEAD),
        temporary_bytes=needed.temporary_bytes,
        jaxpr=traced.jaxpr,
        text=needed.text,
        compile_seconds=time.perf_counter() - began,
    )
