"""The runner's half of the ring, in universes that one seed decides.

    python -m tests.prove.simulation [--seeds N] [--first SEED]

The loop, its books, suspicions, verdicts and stopping are the real ones. Workers, the saver, pipes
and the clock are simulated: what happens next, and how long it takes, chance says. Files are good,
or fail, kill or hang their worker, or ruin it; workers die by themselves, or do not start; somebody
presses Ctrl-C; the saver dies. In one of five universes an executor has the files, which loses
batches, refuses them, or breaks. A seed that breaks a promise is printed, and repeats exactly.

What must hold: the run ends; nothing is saved twice, lost, or in two hands at a time; nobody is
blamed without cause, or called more often than retries allow; what is told is what was saved.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pickle
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from typing import Any, cast
from unittest import mock

from resumable_pool import Failure, Outcome, ResumablePoolError, ResumableRunner, WorkerStartError
from resumable_pool.between import frames, messages
from resumable_pool.between.clock import NEVER
from resumable_pool.between.time_limit import TimeLimit
from resumable_pool.errors import ExecutorError, SaverError
from resumable_pool.options import Options
from resumable_pool.run import loop, processes
from resumable_pool.run.books import Books
from resumable_pool.run.executors import FarCrew, Slot
from resumable_pool.run.plan import Plan
from resumable_pool.run.processes import Crew, Worker
from resumable_pool.run.screen import screen_for
from resumable_pool.run.stopping import BY_CALL
from resumable_pool.run.suspicion import HARDER, STREAK

# More turns than any run needs: it does not end.
MOST_TURNS = 30_000

# In so many universes an executor has the files.
FAR = 0.2

# Accidents come to an end, so that a run can.
CALM_AFTER = 3_000

GOOD, FAILS, CRASHES, HANGS, RUINS = "good", "fails", "crashes", "hangs", "ruins"


class Universe:
    """What is in flight, what has been saved, and what chance does next."""

    def __init__(self, seed: int, options: Options) -> None:
        chance = self.chance = random.Random(seed)
        self.now = 0.0
        self.turns = 0
        self.number = chance.choice([1, 3, 20, 60, 200])
        self.options = options._replace(
            max_workers=chance.choice([1, 2, 5]),
            retries=chance.choice([0, 0, 1, 3]),
            retry_delay=chance.choice([0.0, 0.0, 2.0]),
            timeout=chance.choice([NEVER, NEVER, 5.0]),
            max_failures=chance.choice([None, None, None, 0, 3]),
            grace_period=chance.choice([0.0, 1.0, 10.0]),
            max_tasks_per_child=chance.choice([None, None, None, 7]),
        )
        self.engine: SimulatedExecutor | None = None
        if (far := random.Random(f"far {seed}")).random() < FAR:
            self.engine = SimulatedExecutor(
                self, far.choice([0.0, 0.1, 0.4]), far.choice([0, 0.05])
            )
            self.options = self.options._replace(
                executor=cast(Any, self.engine), timeout=NEVER, max_tasks_per_child=None
            )
        self.dies = chance.choice([0.0, 0.0, 0.01, 0.1])
        self.dies_at_start = chance.choice([0.0, 0.0, 0.05])
        self.stops = chance.choice([0.0, 0.0, 0.0, 0.01])
        self.saver_dies = chance.choice([0.0] * 9 + [0.001])
        self.quick = chance.choice([1e-5, 1e-3, 0.3])
        self.nature = self._natures()
        self.calls: Counter[str] = Counter()
        self.hands: dict[str, int] = {}  # who has which path
        self.saved: set[str] = set()
        self.failed: dict[str, Failure] = {}
        self.lost_with: set[str] = set()  # the paths whose worker died of nothing while it had them
        self.requests: list[str] = []
        self.asked = False
        self.workers: list[SimulatedWorker] = []
        self.saver: SimulatedSaver

    def _natures(self) -> dict[str, str]:
        kinds = [FAILS, CRASHES, RUINS] + ([HANGS] if self.options.timeout < NEVER else [])
        share = self.chance.choice([0.0, 0.0, 0.05, 0.3, 1.0])
        ruins = self.chance.choice([0, 0, 1])
        natures = {}
        for path in map("f{:03}".format, range(self.number)):
            kind = self.chance.choice(kinds) if self.chance.random() < share else GOOD
            natures[path] = FAILS if kind == RUINS else kind
        # Where nobody has had a success yet, a ruined worker cannot be told from a wrong function.
        first, later = (
            [*natures][: self.options.max_workers],
            [*natures][self.options.max_workers :],
        )
        if ruins and share < 1 and later:
            natures.update(dict.fromkeys(first, GOOD))
            natures[self.chance.choice(later)] = RUINS
        return natures

    @property
    def calm(self) -> bool:
        """Whether no more accidents happen."""
        return self.turns >= CALM_AFTER

    def happens(self, probability: float) -> bool:
        """Whether an accident of this probability happens now."""
        return not self.calm and self.chance.random() < probability

    def pass_time(self, seconds: float) -> None:
        """The loop waits: some things happen, one after the other."""
        self.turns += 1
        assert self.turns < MOST_TURNS, "it does not end"
        for _ in range(self.chance.choice([1, 1, 2, 5, 20])):
            possible = [*self.saver.steps()]
            for worker in self.workers:
                possible += worker.steps()
            possible += self.engine.steps() if self.engine else []
            if not possible:
                self.now += seconds if seconds < NEVER else 1.0
                break
            self.now += self.chance.random() * self.quick
            self.chance.choice(possible)()
        if self.happens(self.stops):
            self.asked = True
            self.requests.append(self.chance.choice(["SIGINT", "SIGTERM", BY_CALL]))
        if self.happens(self.saver_dies):
            self.saver.die()


class SimulatedClock:
    """Time passes only in waits."""

    universe: Universe

    @property
    def now(self) -> float:
        return self.universe.now

    def look(self) -> float:
        return self.universe.now

    peek = look

    @contextlib.contextmanager
    def waiting(self, seconds: float) -> Iterator[float]:
        yield seconds


class SimulatedWaiter:
    """In its wait the world goes on."""

    universe: Universe

    def add(self, end: object) -> None:
        """There is nothing but the world to wait for."""

    def wait(self, seconds: float, also: Iterable[object] = ()) -> list[Any]:
        self.universe.pass_time(seconds)
        return []


class SimulatedRequests:
    """Stands for `StopRequests`."""

    wakener = None
    seconds_left = NEVER

    def __init__(self, universe: Universe) -> None:
        self._universe = universe
        self.signals = False

    def wake(self) -> None:
        """The loop looks around anyway."""

    def take(self) -> Iterator[str]:
        taken, self._universe.requests = self._universe.requests, []
        self.signals = self.signals or any(request != BY_CALL for request in taken)
        return iter(taken)


class SimulatedSaver:
    """The saver's handle and its process in one. Messages wait in between for as long as chance
    wants."""

    universe: Universe

    def __init__(self, *arguments: object) -> None:
        self.universe.saver = self
        self.gone = self.dead = self._opened = False
        self._reports: deque[messages.Report] = deque()
        self._orders: deque[messages.ToSaver] = deque()
        self._more_orders = True
        self._unsaved: deque[str] = deque()
        self.streams: dict[int, deque[Any]] = {}
        self._outcomes: Counter[int] = Counter()  # by worker

    # The handle.

    def start(self) -> None:
        """It is there."""

    def tell(self, message: messages.ToSaver) -> None:
        self._orders.append(message)

    def read_reports(self) -> Iterator[messages.Report]:
        while self._reports:
            yield self._reports.popleft()
        self.gone = self.gone or self.dead

    def last_reports(self, look: Callable[[], None]) -> Iterator[messages.Report]:
        self._more_orders = False
        while not self.gone:
            self.universe.pass_time(1.0)
            look()
            yield from self.read_reports()
            self.gone = self.gone or not (
                self.streams or self._orders or self._reports or self._unsaved
            )

    def kill(self) -> None:
        self.die()

    def bury(self) -> str:
        return "died" if self.dead else ""

    def loss(self, how: str, opened: bool) -> ResumablePoolError:
        return SaverError("result.pkl", how)

    # The process, a step at a time.

    def die(self) -> None:
        """Nothing more is saved or told."""
        self.dead = True

    def steps(self) -> Iterator[Callable[[], None]]:
        if self.dead:
            return
        if not self._opened:
            yield self._open
            return
        if self._orders:
            yield self._follow
        for worker, stream in self.streams.items():
            if stream:
                yield functools.partial(self._read, worker)
        if self._unsaved:
            yield self._save

    def _open(self) -> None:
        self._opened = True
        self._tell(messages.Opened([], None))  # type: ignore[arg-type]

    def _follow(self) -> None:
        match self._orders.popleft():
            case messages.SaveFailure(outcome):
                assert outcome.failure is not None
                self._fail(outcome.failure)

    def _fail(self, failure: Failure) -> None:
        universe, path = self.universe, failure.path
        assert path not in universe.failed, f"{path} has failed twice"
        assert path not in universe.saved, f"{path} has failed after it was saved"
        assert failure.attempts > universe.options.retries, f"{path} was given up early"
        universe.failed[path] = failure
        self._tell(messages.FailureSaved(path))

    def _read(self, worker: int) -> None:
        match self.streams[worker].popleft():
            case messages.Hello():
                pass
            case messages.Ready() | messages.BatchOver() | Outcome() as said:
                self._outcomes[worker] += isinstance(said, Outcome)
                self._tell(said, worker)
            case messages.Values(records):
                self._outcomes[worker] += len(records)
                paths = [bytes(record).decode() for record in records]
                self._unsaved.extend(paths)
                self._tell(messages.Received(len(paths)), worker)
            case end:
                del self.streams[worker]
                clean = end == messages.Done(self._outcomes[worker])
                self._tell(messages.Ended(clean), worker)

    def _tell(self, message: messages.FromSaver, worker: int = messages.OF_NONE) -> None:
        self._reports.append((worker, message))

    def _save(self) -> None:
        number = self.universe.chance.randint(1, len(self._unsaved))
        for _ in range(number):
            path = self._unsaved.popleft()
            assert path not in self.universe.saved, f"{path} was saved twice"
            assert path not in self.universe.failed, f"{path} was saved after it had failed"
            self.universe.saved.add(path)
        self._tell(messages.Saved(number))


class SimulatedWorker(Worker):
    """The process of a worker, and its pipes; what the runner knows of it is the real thing."""

    def __init__(self, serial: int, universe: Universe) -> None:
        self.serial, self.name = serial, f"worker {serial}"
        self.pid, self.sentinel = serial, cast(Any, self)
        self._universe = universe
        self._stream: deque[Any] = deque()
        universe.saver.streams[serial] = self._stream
        self._lives = True
        self._gone = False  # some time after its stream has ended
        self._said: type | None = None
        self._set_up = self._unread = False
        self._batch: deque[tuple[str, int]] | None = None
        self._at: tuple[str, int] | None = None
        self._begun = False  # any file of the batch
        self._ruined = self._hangs = self._told_to_go = self._recalled = self._condemned = False
        self._outcomes = 0

    # As the runner sees it.

    def tell(self, message: bytes, handed_over: object = None) -> None:
        told = pickle.loads(message)
        if not self._set_up:
            self._set_up = True
        elif told:
            self._take(told)
        else:
            self._recalled = True

    def _take(self, batch: messages.Batch) -> None:
        universe = self._universe
        assert not self._batch, "dealt while it has a batch"
        for path in batch:
            assert path not in universe.saved, f"{path} is dealt again after it was saved"
            assert path not in universe.failed, f"{path} is dealt again after it has failed"
            assert path not in universe.hands, f"{path} is in two hands"
            if self._lives:
                universe.hands[path] = self.serial
        self._batch = deque(messages.attempts_in(batch))
        self._begun = self._recalled = False
        self._unread = not self._lives

    def tell_no_more(self) -> None:
        self._told_to_go = True

    def has_unread(self, length: int) -> bool:
        return self._unread

    def has_ended(self) -> bool:
        return self._gone

    def signal_group(self, name: str) -> None:
        self._condemned = True
        if name == "SIGKILL":
            self.die("killed")

    def hear(self) -> bytes:
        return b""

    def reap(self, in_peace: bool) -> tuple[int | None, bytes]:
        self._lives, self._gone = False, True
        return None, b""

    # The process, a step at a time.

    def die(self, how: object = None) -> None:
        """From one moment to the next."""
        universe = self._universe
        if self._lives:
            self._lives = False
            self._unread = bool(self._batch) and not self._begun
            self._release()
            self._stream.append(how)
            if how is None and self._begun and self._batch is not None:
                # It had this one, or would have begun it next: nobody can know better.
                mine = [self._at] if self._at else [*self._batch]
                universe.lost_with.update(path for path, _ in mine[:1])

    def _release(self) -> None:
        hands = self._universe.hands
        for path in [path for path, serial in hands.items() if serial == self.serial]:
            del hands[path]

    def steps(self) -> list[Callable[[], None]]:
        universe = self._universe
        if not self._lives:
            return [] if self._gone else [self._go]
        starting = self._said is not messages.Ready
        if self._condemned:
            return [self.die]
        if universe.happens(universe.dies_at_start if starting else universe.dies / 20):
            return [self.die]
        if self._said is None:
            return [lambda: self._say(messages.Hello(1))]
        if starting:
            return [lambda: self._say(messages.Ready())] if self._set_up else []
        if self._hangs:
            return []
        if self._batch is not None:
            return [self._work]
        return [self._leave] if self._told_to_go else []

    def _say(self, message: messages.FromWorker) -> None:
        self._said = type(message)
        self._stream.append(message)

    def _go(self) -> None:
        self._gone = True

    def _leave(self) -> None:
        self._lives = False
        self._stream.append(messages.Done(self._outcomes))

    def _work(self) -> None:
        assert self._batch is not None
        if self._at is None:
            if not self._batch or (self._recalled and self._begun):
                self._end_batch()
                return
            self._at, self._begun = self._batch.popleft(), True
            self._universe.calls[self._at[0]] += 1
            return
        path, attempt = self._at
        nature = FAILS if self._ruined else self._universe.nature[path]
        if nature == HANGS:
            self._hangs = True
            return
        if nature == CRASHES:
            self.die("crashed")
            return
        self._at = None
        self._outcomes += 1
        self._universe.hands.pop(path)
        if nature in (FAILS, RUINS):
            self._ruined = self._ruined or nature == RUINS
            failure = Failure(path, "error", "ValueError", "", attempt, 0.0)
            self._stream.append(Outcome[Any](path, None, 0, failure, 0.0, attempt))
            self._end_batch()
        else:
            self._stream.append(messages.Values([path.encode()]))
            if self._universe.chance.random() < 0.1:  # it takes longer than planned
                self._end_batch()

    def _end_batch(self) -> None:
        for path, _ in self._batch or ():
            self._universe.hands.pop(path)
        self._batch = None
        self._stream.append(messages.BatchOver())


class SimulatedCrew(Crew):
    """Workers of this universe."""

    universe: Universe

    def _start(self, serial: int, slot: int) -> Worker:
        self._books.enter(serial)
        worker = SimulatedWorker(serial, self.universe)
        self.universe.workers.append(worker)
        return worker

    def attend(self, ready: Collection[object], now: float) -> list[Worker]:
        """Now and then a sentinel is seen late."""
        chance = self.universe.chance
        gone = [w for w in self.values() if w.has_ended() and chance.random() < 0.5]
        return super().attend(gone, now)


class SimulatedExecutor:
    """Somebody else's, who has batches, and answers when he likes, or not at all."""

    def __init__(self, universe: Universe, loses: float, breaks: float) -> None:
        self.unreliable = bool(loses or breaks)
        self._universe = universe
        self._loses, self._breaks = loses, breaks
        self._in_flight: list[tuple[Future[Any], messages.Batch]] = []
        self._broken = self._answered = False

    def submit(self, call: object, run: str, setup: object, folder: str, batch: Any) -> Future[Any]:
        universe = self._universe
        if self._broken or universe.happens(self._breaks / 4):
            self._broken = True
            raise BrokenExecutor("it is closed")
        for path in batch:
            assert path not in universe.saved, f"{path} is dealt again after it was saved"
            assert path not in universe.failed, f"{path} is dealt again after it has failed"
            assert path not in universe.hands, f"{path} is in two hands"
            universe.hands[path] = 0
        future: Future[Any] = Future()
        self._in_flight.append((future, batch))
        return future

    def steps(self) -> list[Callable[[], None]]:
        return [self._begin_one, self._end_one] if self._in_flight else []

    def _begin_one(self) -> None:
        """From now on it cannot be taken back."""
        future, batch = self._universe.chance.choice(self._in_flight)
        if not (future.running() or future.set_running_or_notify_cancel()):
            self._leave(future, batch)

    def _end_one(self) -> None:
        universe = self._universe
        future, batch = universe.chance.choice(self._in_flight)
        if future.cancelled():
            self._leave(future, batch)
        elif self._broken or universe.happens(self._breaks):
            self._lose(future, batch, BrokenExecutor("it has broken"))
        elif universe.happens(self._loses):
            self._lose(future, batch, RuntimeError("it is lost"))
        else:
            self._answer(future, batch)

    def _answer(self, future: Future[Any], batch: messages.Batch) -> None:
        universe, done = self._universe, []
        for path, attempt in messages.attempts_in(batch):
            universe.calls[path] += 1
            nature = universe.nature[path]
            if nature == CRASHES:
                self._lose(future, batch, BrokenExecutor("a process of it has died"))
                return
            if nature != GOOD:
                failure = Failure(path, "error", "ValueError", "", attempt, 0.0)
                failed = Outcome[Any](path, None, 0, failure, 0.0, attempt)
                done.append(frames.plain_frame(failed))
                break
            done.append(b"".join(frames.value_frame([path.encode()])))
            if universe.chance.random() < 0.1:  # it takes longer than planned
                break
        self._leave(future, batch)
        self._answered = True
        future.set_result((len(done), 0.1, b"".join(done)))

    def _lose(self, future: Future[Any], batch: messages.Batch, why: Exception) -> None:
        """Nothing comes of the batch; who breaks has nothing any more. The only file may be to
        blame for that: the only one in flight, or of its batch if some have ever come back."""
        breaks = isinstance(why, BrokenExecutor)
        in_flight = [task for _, one in self._in_flight for task in one]
        if len(in_flight if breaks else batch) == 1 and (breaks or self._answered):
            self._universe.lost_with.update(batch)
        self._broken = self._broken or breaks
        self._leave(future, batch)
        future.set_exception(why)

    def _leave(self, future: Future[Any], batch: messages.Batch) -> None:
        self._in_flight.remove((future, batch))
        for path in batch:
            del self._universe.hands[path]


class SimulatedResults:
    """A slot's pipe to the saver."""

    def __init__(self, stream: deque[Any]) -> None:
        self._stream: deque[Any] | None = stream

    def write(self, data: bytes) -> None:
        received: list[Any] = []
        reader = frames.FrameReader.__new__(frames.FrameReader)
        reader._decode = frames._decode
        reader._take_frames(memoryview(data), received)
        if self._stream is not None:
            self._stream.extend(received)

    def finish(self) -> None:
        self._stream = None

    def close(self) -> None:
        self._stream = None


class SimulatedFarCrew(FarCrew):
    """The real one, with simulated pipes."""

    universe: Universe

    def _start(self, serial: int, place: int) -> Worker:
        stream = self.universe.saver.streams[serial] = deque()
        return Slot(self, f"slot {serial}", cast(Any, SimulatedResults(stream)))


def _options() -> Options:
    return ResumableRunner(len, [], "simulated.pkl", max_workers=1, progress=False)._options


def simulate(seed: int, base: Options | None = None) -> Universe:
    """One run in the universe of this seed. Raises `AssertionError` if a promise is broken."""
    universe = Universe(seed, base or _options())
    simulated = SimulatedClock, SimulatedWaiter, SimulatedSaver, SimulatedCrew, SimulatedFarCrew
    for thing in simulated:
        thing.universe = universe
    requests = SimulatedRequests(universe)
    plan = Plan([*universe.nature], 0, [], 0, 0, universe.number)
    books = Books(universe.options, plan)
    told: list[tuple[str, bool]] = []
    error: ResumablePoolError | None = None
    with (
        mock.patch.object(processes, "limit_of", lambda seconds, _: TimeLimit(seconds, False)),
        mock.patch.multiple(
            loop,
            Clock=SimulatedClock,
            Waiter=SimulatedWaiter,
            Saver=SimulatedSaver,
        ),
    ):
        screen = screen_for(False, None)
        crew = SimulatedFarCrew if universe.engine else SimulatedCrew
        given: Any = None, lambda: plan, books, requests, screen, crew
        run = loop.Run(universe.options, *given)
        try:
            for finished in run.go():
                told += [(path, not books.has_failed(path)) for path in finished]
        except ResumablePoolError as raised:
            error = raised
    _check(universe, books, told, error)
    return universe


def _check(
    universe: Universe,
    books: Books,
    told: list[tuple[str, bool]],
    error: ResumablePoolError | None,
) -> None:
    counts, options = books, universe.options
    assert len(told) == len(dict(told)), "something was told twice"
    if universe.saver.dead:
        assert isinstance(error, SaverError) or universe.asked, f"ended by {error!r}"
        return
    if isinstance(error, ExecutorError):
        unreliable = universe.engine is not None and universe.engine.unreliable
        assert unreliable or CRASHES in universe.nature.values(), "nothing hindered the executor"
    else:
        assert error is None or isinstance(error, WorkerStartError), f"ended by {error!r}"
    if isinstance(error, WorkerStartError):
        assert universe.dies_at_start or universe.dies, "nothing hindered a start"
    now = dict.fromkeys(universe.saved, True) | dict.fromkeys(universe.failed, False)
    assert dict(told) == now, "what was told is not what was saved"
    saved, failed = len(universe.saved), len(universe.failed)
    assert (counts.completed, counts.failed) == (saved, failed), "the counts are wrong"
    if error is None and not books.stopped:
        assert saved + failed == universe.number, f"{universe.number - saved - failed} are missing"
    _check_blame(universe, options)


def _check_blame(universe: Universe, options: Options) -> None:
    ruins = [path for path, nature in universe.nature.items() if nature == RUINS]
    good = [path for path in universe.failed if universe.nature[path] == GOOD]
    blamed = [path for path in good if path not in universe.lost_with]
    if not ruins:
        assert not blamed, f"{blamed} have failed without cause"
    else:
        # Where bad files come in rows it takes more of them to suspect a worker.
        rows = HARDER if FAILS in universe.nature.values() else 1
        most = STREAK * rows * len(ruins) * options.max_workers
        assert len(blamed) <= most, f"one file has ruined {len(blamed)} others"
    # One further call to find out about a worker, and one for each that died of nothing.
    for path, calls in universe.calls.items():
        if not universe.dies and not universe.dies_at_start:
            assert calls <= options.retries + 2, f"{path} was called {calls} times"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="how many universes (500)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--raise", action="store_true", dest="raises", help="at the first fault")
    given = parser.parse_args()
    base, broken, turns, calls, hours = _options(), 0, 0, 0, 0.0
    begun = time.perf_counter()
    for seed in range(given.first, given.first + given.seeds):
        try:
            universe = simulate(seed, base)
        except Exception as error:
            if given.raises:
                raise
            broken += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
            continue
        turns, calls = turns + universe.turns, calls + universe.calls.total()
        hours += universe.now / 3600
    print(
        f"{given.seeds:,} universes, {turns:,} turns, {calls:,} calls, {hours:,.1f} of their hours "
        f"in {time.perf_counter() - begun:.0f} s: {broken:,} broke a promise"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
