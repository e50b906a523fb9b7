"""What processes tell each other: each hears all, in every round that of the round."""

import threading

import pytest

from kdist.distribution import agreement, store


class Service:
    """A coordination service for the threads of this process, which stand for processes."""

    def __init__(self, parties: int) -> None:
        self.values: dict[str, bytes] = {}
        self.barrier = threading.Barrier(parties)

    def key_value_set_bytes(self, key: str, value: bytes, *, allow_overwrite: bool) -> None:
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get_bytes(self, place: str) -> list[tuple[str, bytes]]:
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(place)]

    def key_value_delete(self, place: str) -> None:
        for key, _ in self.key_value_dir_get_bytes(place):
            del self.values[key]

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        self.barrier.wait(timeout=10)


class Threads:
    """A number of threads that each act as a process."""

    def __init__(self, parties: int) -> None:
        self.parties, self.service, self._local = parties, Service(parties), threading.local()

    def __getattr__(self, name: str) -> int:  # of this thread: its `process_id`, and `rounds` it has begun
        return getattr(self._local, name)

    def run(self, action) -> list:
        """What the action returns on each of them."""
        found = [None] * self.parties

        def one(process: int) -> None:
            self._local.process_id, self._local.rounds = process, iter(range(1000))
            found[process] = action(process)

        threads = [threading.Thread(target=one, args=[process]) for process in range(self.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return found


@pytest.fixture
def processes(monkeypatch):
    """Three processes, which are threads."""
    made = Threads(3)

    class State:
        client, num_processes = made.service, made.parties
        process_id = property(lambda self: made.process_id)

    class Rounds:
        def __next__(self) -> int:
            return next(made.rounds)

    monkeypatch.setattr(store, "global_state", State())
    monkeypatch.setattr(store, "_numbers", Rounds())
    monkeypatch.setattr(agreement.jax, "process_index", lambda: made.process_id)
    monkeypatch.setattr(agreement.jax, "process_count", lambda: made.parties)
    return made


def test_each_hears_all_of_a_round(processes):
    def tell(process):
        return [store.exchange({f"{process}": b"%d" % n} if n % 2 else {"all": b"x"}) for n in range(20)]

    for heard in processes.run(tell):
        for n, round_ in enumerate(heard):
            assert round_ == ({f"{i}": b"%d" % n for i in range(3)} if n % 2 else {"all": b"x"})
    assert len({key.split("/")[2] for key in processes.service.values}) == 1  # what was read is gone


def test_nothing_is_told(processes):
    assert processes.run(lambda process: store.exchange({})) == [{}] * 3


@pytest.mark.parametrize("told", [b"", b"same", bytes(range(256))])
def test_gather_what_is_alike(processes, told):
    assert processes.run(lambda process: agreement.gather(told)) == [[told] * 3] * 3


def test_gather_what_differs(processes):
    told = [b"", b"one", b"\0" * 5000]
    assert processes.run(lambda process: agreement.gather(told[process])) == [told] * 3


def test_agreements(processes):
    assert processes.run(lambda process: agreement.agree(7 - process)) == [7] * 3
    assert processes.run(lambda process: agreement.agree_on_least(process - 1)) == [-1] * 3


def test_one_that_differs_is_named(processes):
    def check(process):
        with pytest.raises(agreement.DistributionError, match="^All processes must train alike, but ") as raised:
            agreement.check_agreement(epochs=3, seed=5 if process == 2 else 4)
        return str(raised.value)

    (message,) = set(processes.run(check))
    assert "seed" in message and "epochs" not in message
