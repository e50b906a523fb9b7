"""A run that is killed at any moment, and started again, ends as one that was not: bit for bit.

What is compared: the losses of every execution, each array of the state at the end, dropout's key included, and the
history.  Each process has an end within the limit of a `Worker`.
"""

import random
import time

import pytest

from .processes import Worker
from .runs import Run
from .training import STEPS, Job

DATA = ["arrays", "source 0", "source 1", "source 2", "generator"]
MOST_SECONDS = 0.05
"""After the moment that it waits for, a kill comes within so long."""
MOST_KILLS = 3
"""Of one run, before it is let to its end."""


def kill(run: Run, worker: Worker, chance: random.Random) -> bool:
    """Kills the worker after some execution, half the time while a backup is being written; whether it came in time."""
    executions = chance.randrange(1, run.job.epochs * STEPS // run.job.k)
    while_saving = chance.random() < 0.5
    for line in worker.read():
        executions -= line.startswith("loss")
        if executions == 0:
            break
    while while_saving and worker.process.poll() is None and not any(run.backup.glob("*.orbax-checkpoint-tmp*")):
        pass
    time.sleep(chance.uniform(0, MOST_SECONDS))
    worker.process.kill()
    return run.take(worker) == -9


def kill_and_compare(tmp_path, data: str, seed: int, kills: int) -> None:
    """Kills runs of a job until there were so many kills; each is started again until it ends, and compared."""
    chance = random.Random(seed)
    job = Job("", data=data, save_freq=5, validated=data == "arrays")
    straight, killed = Run(tmp_path / "straight", job), []
    with straight.start() as uninterrupted:  # meanwhile
        while kills:
            run = Run(tmp_path / f"killed {len(killed)}", job)
            for _ in range(min(kills, MOST_KILLS)):
                with run.start() as worker:
                    came = kill(run, worker, chance)
                kills -= came
                if not came:  # it had ended
                    break
            run.finish()
            killed.append(run)
        assert straight.take(uninterrupted) == 0, uninterrupted.said()
    for run in killed:
        run.check_like(straight)
        assert run.steps() == [str(job.epochs * STEPS)]


def test_three_kills(tmp_path):
    kill_and_compare(tmp_path, "source 2", 0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
def test_ten_kills(tmp_path, data):
    kill_and_compare(tmp_path, data, DATA.index(data) + 1, 10)
