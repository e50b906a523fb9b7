"""SIGTERM in every phase of a run: it saves, ends with 42, and started again it comes to the same end.

The signals are real, and sent by the run to itself, so that they come exactly in the phase that is meant.
"""

import re
import time

import pytest

from .processes import free_port, workers
from .runs import Run
from .training import STEPS, Job

BOUND = 25
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


def start_both(run, jobs):
    """Both processes of a run, each with changes of its own; use it as a context manager."""
    coordinator = f"127.0.0.1:{free_port()}"
    return workers([run.start(coordinator=coordinator, process_id=i, **changes) for i, changes in enumerate(jobs)])


def said(running):
    return "\n\n".join(worker.said() for worker in running)


def finish_both(run):
    """Starts both, and they end well."""
    with start_both(run, [{}, {}]) as running:
        assert [run.take(worker) for worker in running] == [0, 0], said(running)


def check_both_saved(run, running):
    """That both end with 42, and saved the same step last."""
    assert [run.take(worker) for worker in running] == [PREEMPTED] * 2, said(running)
    assert [last_saved(worker) for worker in running] == run.steps() * 2


@pytest.fixture(scope="module")
def straight_on_two(tmp_path_factory):
    """As `straight`, in two processes."""
    known = {}

    def run(job):
        key = job.data, job.k, job.validated
        if key not in known:
            known[key] = Run(tmp_path_factory.mktemp("two"), job)
            finish_both(known[key])
        return known[key]

    return run


def preempt_both(tmp_path, straight_on_two, phase, told):
    """Two processes, some of which get the signal in a phase; they go on to the end of two that did not."""
    run = Run(tmp_path / "run", Job("", k=4, validated=True))
    with start_both(run, [{"signals": [phase] if i in told else []} for i in range(2)]) as running:
        check_both_saved(run, running)
        check_in_time(running[told[0]])
    finish_both(run)
    run.check_like(straight_on_two(run.job))


TOLD = pytest.mark.parametrize("told", [[0], [1], [0, 1]], ids=["first", "second", "both"])


@pytest.mark.parametrize(
    "told", [[1], *(pytest.param(all_, marks=pytest.mark.slow) for all_ in ([0], [0, 1]))], ids=str
)
def test_two_processes_save_the_same_step(tmp_path, straight_on_two, told):
    preempt_both(tmp_path, straight_on_two, "train", told)


@pytest.mark.slow
@TOLD
@pytest.mark.parametrize("phase", ["compile", "validation", "save", "background"])
def test_two_processes_in_every_phase(tmp_path, straight_on_two, phase, told):
    preempt_both(tmp_path, straight_on_two, phase, told)


def check_stalled(tmp_path, straight_on_two, job, phase, stuck, told, last):
    """The input of one process stalls, and the signal comes to one of both, after an execution; they save that."""
    run = Run(tmp_path / "run", job)
    with start_both(run, [{"stalls": phase if i == stuck else ""} for i in range(2)]) as running:
        awaited = {"stalled", f"loss 1 {last} "}
        for line in running[stuck].read():
            awaited -= {start for start in awaited if line.startswith(start)}
            if not awaited:
                break
        running[told].process.terminate()
        began = time.monotonic()
        check_both_saved(run, running)
        assert time.monotonic() - began < BOUND
    assert run.steps() == [str(min(2 * STEPS, STEPS + last + 1))]
    finish_both(run)
    run.check_like(straight_on_two(job))


@pytest.mark.parametrize(
    ("stuck", "told"),
    [(0, 1), *(pytest.param(*both, marks=pytest.mark.slow) for both in [(0, 0), (1, 0), (1, 1)])],
)
def test_a_stalled_input_of_one_of_two(tmp_path, straight_on_two, stuck, told):
    """It has begun no execution that the other takes part in, so both are at the end of the last chunk."""
    check_stalled(tmp_path, straight_on_two, Job("", data="generator", k=4), "stall", stuck, told, 11)


@pytest.mark.slow
@pytest.mark.parametrize(("stuck", "told"), [(0, 1), (1, 1)])
def test_a_stalled_source_of_one_of_two(tmp_path, straight_on_two, stuck, told):
    check_stalled(tmp_path, straight_on_two, Job("", data="source 0", k=4), "stall", stuck, told, 31)


@pytest.mark.slow
@pytest.mark.parametrize(("stuck", "told"), [(0, 1), (1, 0)])
def test_a_stalled_validation_of_one_of_two(tmp_path, straight_on_two, stuck, told):
    job = Job("", data="generator", k=4, validated=True)
    check_stalled(tmp_path, straight_on_two, job, "stalled validation", stuck, told, 31)
