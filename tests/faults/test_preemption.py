"""SIGTERM in every phase of a run: it saves, ends with 42, and started again it comes to the same end.

The signals are real, and sent by the run to itself, so that they come exactly in the phase that is meant.
"""

import re
import time

import pytest

from .processes import free_port, workers
from .runs import Run
from .training import STEPS, Job

BOUND = 15
"""The seconds from the first signal to the end of all processes, five of which a stalled input may take."""
PREEMPTED = 42


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """``straight(job)``: that job without signals, in one process; jobs that are alike share it."""
    known = {}

    def run(job):
        key = job.data, job.k, job.validated
        if key not in known:
            known[key] = Run(tmp_path_factory.mktemp("straight"), job)
            known[key].finish()
        return known[key]

    return run


def preempt(run, *signals, **changes):
    """Starts a run that gets signals; it must end with 42, in time, having saved, as the last thing it did."""
    with run.start(signals=list(signals), **changes) as worker:
        code = run.take(worker)
        assert code == PREEMPTED, worker.said()
        check_in_time(worker)
        assert run.steps() == [last_saved(worker)]
    return worker


def check_in_time(worker):
    ended = time.time()
    (first, *_) = re.findall(r"signalled at ([\d.]+)", "\n".join(worker.lines))
    assert ended - float(first) < BOUND


def last_saved(worker):
    """The step that it saved last."""
    return [line.removeprefix("saved ") for line in worker.lines if line.startswith("saved ")][-1]


def check(tmp_path, straight, job, *signals, **changes):
    """A run that is preempted, and goes on to the end of one that was not."""
    run = Run(tmp_path / "run", job)
    worker = preempt(run, *signals, **changes)
    run.finish()
    run.check_like(straight(job))
    return worker


def test_training_and_again_while_it_saves(tmp_path, straight):
    """A second signal does no harm, and a handler of the user's own is called for each."""
    worker = check(tmp_path, straight, Job("", k=16), "train", "save", handles=True)
    assert worker.lines.count("own handler") == 2
    assert last_saved(worker) == str(STEPS + 16)  # at the end of the execution


@pytest.mark.slow
def test_a_stalled_input(tmp_path, straight):
    worker = check(tmp_path, straight, Job("", data="generator", k=1), "stall")
    assert last_saved(worker) == str(STEPS)  # what had been read of the next chunk is read again


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 16, 100])
@pytest.mark.parametrize("phase", ["compile", "train", "validation", "save", "background"])
def test_every_phase(tmp_path, straight, phase, k):
    check(tmp_path, straight, Job("", k=k, validated=True), phase)


@pytest.mark.slow
@pytest.mark.parametrize("k", [16, 100])
def test_a_stalled_input_within_an_execution(tmp_path, straight, k):
    """What was read of the execution is lost, and read again."""
    check(tmp_path, straight, Job("", data="generator", k=k), "stall")


@pytest.mark.slow
def test_a_stalled_validation(tmp_path, straight):
    check(tmp_path, straight, Job("", data="generator", k=1, validated=True), "stalled validation")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["source 0", "source 2", "generator"])
def test_other_data(tmp_path, straight, data):
    check(tmp_path, straight, Job("", data=data, k=1), "train", "background")


@pytest.mark.slow
def test_again_and_again(tmp_path, straight):
    """A run that is preempted whenever it is started."""
    job = Job("", k=2, save_freq=5, validated=True)
    run = Run(tmp_path / "run", job)
    for phase in ("compile", "train", "background", "validation"):
        preempt(run, phase)
    run.finish()
    run.check_like(straight(job))


def take_both(run, *signals_of):
    """Runs both processes to their end; their exit codes, and they themselves."""
    coordinator = f"127.0.0.1:{free_port()}"
    made = [
        run.start(coordinator=coordinator, process_id=i, signals=list(signals)) for i, signals in enumerate(signals_of)
    ]
    with workers(made) as running:
        codes = [run.take(worker) for worker in running]
        if any(signals_of):
            check_in_time(next(worker for worker, signals in zip(running, signals_of, strict=True) if signals))
    return codes, running


def said(running):
    return "\n\n".join(worker.said() for worker in running)


@pytest.fixture(scope="module")
def straight_on_two(tmp_path_factory):
    """A run of two processes that nothing happened to."""
    run = Run(tmp_path_factory.mktemp("two"), Job("", k=4))
    codes, running = take_both(run, [], [])
    assert codes == [0, 0], said(running)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals_of",
    [(["train"], []), ([], ["train"]), (["train"], ["train"]), ([], ["compile"]), (["background"], [])],
    ids=["first", "second", "both", "compile", "background"],
)
def test_two_processes_save_the_same_step(tmp_path, straight_on_two, signals_of):
    run = Run(tmp_path / "run", straight_on_two.job)
    codes, running = take_both(run, *signals_of)
    assert codes == [PREEMPTED, PREEMPTED], said(running)
    assert [last_saved(worker) for worker in running] == run.steps() * 2
    codes, running = take_both(run, [], [])
    assert codes == [0, 0], said(running)
    run.check_like(straight_on_two)
