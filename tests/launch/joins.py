"""A process that joins the run which its environment describes, and says who is there."""

import jax
import numpy as np
from jax.experimental import multihost_utils

import kdist


def main() -> None:
    kdist.initialize()
    numbers = multihost_utils.process_allgather(np.int32(jax.process_index()))
    print(f"process {jax.process_index()} of {jax.process_count()} hears {numbers.tolist()}", flush=True)


if __name__ == "__main__":
    main()
