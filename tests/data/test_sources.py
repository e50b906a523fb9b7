"""Where batches come from: the threads that read them, how far ahead, in which order, and what they do on errors."""

import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import grain
import numpy as np
import pytest
from absl import flags

import kdist
from kdist.data import from_batches
from kdist.data import workers as reading
from kdist.data.sources import DEFAULT_AHEAD, NOTHING, Anew, ByNumber, Mapped, Once, Reading
from kdist.errors import ConfigError, DataError

X = np.ones((2, 1), np.float32)
SECONDS = 30
"""After so long a wait is a failure."""


class Squares:
    """Batches by number that can be sent to other processes; the third may be broken."""

    def __init__(self, length, broken=False):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, n):
        if self.broken and n == 2:
            raise KeyError("the third batch is gone")
        return np.full((2, 1), n * n)


class Recorded(Squares):
    """Remembers which thread read what."""

    def __init__(self, length):
        super().__init__(length)
        self.readers = {}

    def __getitem__(self, n):
        self.readers[n] = threading.get_ident()
        return super().__getitem__(n)


def read(source, number=0):
    """The batches of a pass, each by its first entry."""
    return [int(item[0, 0]) for item in source.start(number)]


@pytest.mark.parametrize("arguments", [{"workers": 0}, {"workers": 1}, {}], ids=str)
def test_one_reader_reads_where_it_is_asked(arguments):
    sequence = Recorded(4)
    assert read(ByNumber(sequence, **arguments)) == [0, 1, 4, 9]
    assert set(sequence.readers.values()) == {threading.get_ident()}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("queue", [1, 2, 100])
def test_several_threads_keep_the_order(queue, shuffle):
    sequence = Recorded(17)
    found = [read(ByNumber(sequence, shuffle, workers=3, max_queue_size=queue), number) for number in (0, 1)]
    assert found == [read(ByNumber(Squares(17), shuffle), number) for number in (0, 1)]
    assert threading.get_ident() not in sequence.readers.values()


class Reversed(Squares):
    """Of each two batches the first waits until the second was read."""

    def __init__(self, length):
        super().__init__(length)
        self.done = [threading.Event() for _ in range(length)]

    def __getitem__(self, n):
        if n % 2 == 0:
            assert self.done[n + 1].wait(SECONDS)
        self.done[n].set()
        return super().__getitem__(n)


def test_threads_that_finish_in_another_order_keep_it():
    assert read(ByNumber(Reversed(8), workers=2)) == [n * n for n in range(8)]


@pytest.mark.parametrize(("workers", "queue", "most"), [(2, 3, 3), (2, 2, 2), (4, 1, 4), (2, None, DEFAULT_AHEAD)])
def test_the_queue_bounds_what_is_read_ahead(workers, queue, most):
    """Never more than the queue, or a batch a worker."""
    sequence = Recorded(50)
    batches = ByNumber(sequence, workers=workers, max_queue_size=queue).start(0)
    for taken in range(1, 4):
        next(batches)
        assert len(sequence.readers) < taken + most
    batches.close()
    assert len(sequence.readers) < 3 + most


def test_what_is_not_begun_when_reading_ends_is_not_read(monkeypatch):
    """Two threads are in their batches when the pass is given up; the rest of the queue is dropped."""
    go_on = threading.Event()

    class Blocking(Recorded):
        def __getitem__(self, n):
            item = super().__getitem__(n)
            assert n == 0 or go_on.wait(SECONDS)
            return item

    class LetGo(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go_on.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr(reading, "ThreadPoolExecutor", LetGo)
    sequence = Blocking(50)
    batches = ByNumber(sequence, workers=2).start(0)
    next(batches)
    batches.close()
    assert set(sequence.readers) <= {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_comes_where_its_batch_was_to_come(workers):
    batches = ByNumber(Squares(6, broken=True), workers=workers).start(0)
    assert [int(next(batches)[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match="^Batch 2 of the Squares could not be read: KeyError: 'the third") as caught:
        next(batches)
    raised = caught.value.__cause__
    assert isinstance(raised, KeyError)
    assert traceback.extract_tb(raised.__traceback__)[-1].name == "__getitem__"  # where it was raised


def test_a_sequence_says_how_it_is_read():
    class Own(Recorded):
        workers = 2

    own = Own(4)
    assert read(ByNumber(own)) == [0, 1, 4, 9]
    assert threading.get_ident() not in own.readers.values()
    own = Own(4)
    assert read(ByNumber(own, workers=0)) == [0, 1, 4, 9]  # what is given counts more
    assert set(own.readers.values()) == {threading.get_ident()}


def test_a_sequence_without_workers_is_read_in_no_thread():
    class Own(Recorded):
        workers = 0

        def on_epoch_end(self):
            pass

    assert not from_batches(Own(4)).source.threaded
    assert from_batches(Own(4), workers=1).source.threaded
    assert not from_batches(Squares(4).__getitem__, workers=0).source.threaded


def test_batches_without_end():
    class Endless(Squares):
        num_batches = None

    source = ByNumber(Endless(0), shuffle=True)
    assert source.length is None
    numbers = source.start(0)
    assert [int(next(numbers)[0, 0]) for _ in range(4)] == [0, 1, 4, 9]


def test_the_number_of_batches_counts_more_than_the_length():
    class Own(Squares):
        num_batches = 2

    assert ByNumber(Own(5)).length == 2


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_short_sequences(length, workers):
    assert read(ByNumber(Squares(length), workers=workers)) == [0][:length]


class Locked(Squares):
    """Cannot be sent anywhere."""

    def __init__(self, length):
        super().__init__(length)
        self.lock = threading.Lock()


def test_processes_need_a_sequence_that_can_be_pickled():
    with pytest.raises(DataError, match="use_multiprocessing=True sends the Locked to other processes.*pickled"):
        read(ByNumber(Locked(3), use_multiprocessing=True))
    assert read(ByNumber(Locked(3), workers=2)) == [0, 1, 4]


@pytest.mark.slow
def test_processes_read_in_order_and_pass_errors_on():
    """Slow: a spawned process imports everything."""
    assert read(ByNumber(Squares(7), workers=2, use_multiprocessing=True)) == [n * n for n in range(7)]
    with pytest.raises(DataError, match="Batch 2 of the Squares could not be read: KeyError: 'the third"):
        read(ByNumber(Squares(4, broken=True), workers=1, use_multiprocessing=True))


def test_the_number_of_a_batch_that_cannot_be_read():
    """By its number, in whatever order it came; of other sources counted through the pass."""
    shuffled = ByNumber(Squares(6, broken=True), shuffle=True)
    with pytest.raises(DataError, match="^Batch 2 of the Squares could not be read"):
        list(shuffled.start(0))

    def breaking():
        yield from (X, X)
        raise StopAsyncIteration("of another kind")

    reading = Reading(Anew(breaking, None, "function f"))
    assert (reading.take() is X, reading.take() is X) == (True, True)
    with pytest.raises(DataError, match="^Batch 2 of the function f could not be read: StopAsyncIteration: of another"):
        reading.take()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_is_no_error_of_the_data(error):
    def breaking():
        raise error
        yield

    with pytest.raises(error):
        Reading(Anew(breaking, None, "function")).take()


def test_errors_of_kdist_stay_what_they_are():
    def breaking():
        raise ConfigError("as it was")
        yield

    with pytest.raises(ConfigError, match="^as it was$"):
        Reading(Once(breaking())).take()


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
def test_an_error_in_a_hook_is_named(hook):
    def broken():
        raise OSError("the disk is gone")

    sequence = Squares(1)
    setattr(sequence, hook, broken)
    reading = Reading(ByNumber(sequence))
    with pytest.raises(DataError, match=f"^{hook} of the Squares failed: OSError: the disk is gone"):
        while reading.take() is not NOTHING:
            pass


class Endless(Squares):
    def __len__(self):
        return sys.maxsize // 4


def test_so_long_is_without_end():
    rows = grain.MapDataset.range(6).map(lambda i: np.float32([i]))
    assert Mapped(rows.repeat().batch(4)).length is None and Mapped(rows.batch(4).repeat()).length is None
    assert Mapped(rows.batch(4)).length == 2
    assert ByNumber(Endless(0), shuffle=True).length is None
    loader = from_batches(rows.repeat().batch(4), steps=2)
    assert [int(b.x[0, 0]) for b in loader.batches(1, fresh=False)] == [2, 0]  # batches of 0, 4, 2, 0, ...


def test_absl_is_told_that_there_are_no_flags(monkeypatch):
    """Grain's worker processes want them; they can still be parsed afterwards."""
    fresh = flags.FlagValues()
    flags.DEFINE_integer("some_number", 3, "", flag_values=fresh)
    monkeypatch.setattr(flags, "FLAGS", fresh)
    for module, parsed in (("elsewhere", False), ("grain.dataset", True)):
        source = type("Batches", (list,), {"__module__": module})([1, 2])
        assert list(from_batches(source).source.start(0)) == [1, 2]
        assert list(from_batches(lambda source=source: source).source.start(0)) == [1, 2]
        assert fresh.is_parsed() is parsed
    assert fresh.some_number == 3
    fresh(["program", "--some_number=4"])
    assert fresh.some_number == 4


@pytest.mark.slow
def test_grains_own_worker_processes():
    """Slow: a spawned process imports everything."""
    batches = grain.MapDataset.range(6).map(lambda i: np.full((2, 1), i)).to_iter_dataset()
    batches = batches.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=1))
    flags.FLAGS.unparse_flags()
    assert read(from_batches(batches).source) == list(range(6))


def test_iterators_go_on_and_makers_start_again():
    once, anew = Once(iter(range(5))), Anew(lambda: iter(range(5)), 5, "range")
    assert [next(once.start(0)), next(once.start(1)), next(anew.start(0)), next(anew.start(1))] == [0, 1, 0, 0]
    assert (str(once), str(anew), str(ByNumber(Squares(1)))) == ("the range_iterator", "the range", "the Squares")
    assert (once.restarts, anew.restarts, once.length, anew.length) == (False, True, None, 5)


def test_predictions_of_changing_shapes_say_which():
    """An input that a layer does not fit, and outputs that no array can hold."""
    x = [np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)]
    with pytest.raises(DataError, match="Step 1, from .*cannot be applied"):
        kdist.Model(nn.Dense(2)).predict(iter(x), verbose=0)
    through = kdist.Model((lambda key, x: {}, lambda params, x: x))
    with pytest.raises(DataError, match="outputs of batches differ in their shapes"):
        through.predict(iter(x), verbose=0)
