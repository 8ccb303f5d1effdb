"""ResumableRunner: what the user sees of a run, and the picture of all the rest.

            paths                    outcomes                   bytes
   ┌────────┐  ───────────▶  ┌─────────┐  ───────────▶  ┌───────┐  ───────▶  ┌────────────┐
   │ runner │                │ workers │                │ saver │            │ checkpoint │
   └────────┘  ◀─────┐       └─────────┘                └───────┘            └────────────┘
                     └────────────── reports ───────────────┘

The processes form a ring, and data flow around it in one direction. The runner (this process; its
loop is `Run.go` in run/loop.py) deals paths to the workers, through one pipe for each. A worker
calls the function and sends every outcome to the saver, through a pipe of its own. The saver writes
it to the checkpoint and reports that, and only on that report does the runner deal that worker its
next paths.

Four rules hold everywhere, and each is kept in one place:

1. One writer and one reader per pipe, and no lock shared by processes: a process that is killed can
   hurt only itself. (between/pipes.py makes every pipe, between/forks.py keeps its ends apart)
2. The saver is dumb: bytes in, bytes out; it never unpickles a value. (saver/process.py)
3. Only the saver decides what was finished; what else became of a file is decided by the runner,
   after its worker's stream has ended. (`Run._note_end` in run/loop.py)
4. At every moment the checkpoint on disk is valid. (checkpoints/pickle_file.py)

Knows nothing of pipes and messages, of bytes and pickling.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .between.clock import monotonic
from .between.forks import Owned, undivided
from .checkpoints import Checkpoint
from .checkpoints.base import ByPath
from .files import Paths, Told, check_pattern, is_in_shard, list_files, nothing_found
from .hooks import SAVER_HOOKS, Hooks, completed_elsewhere, overrides
from .options import check_callable, check_options, check_sent
from .records import Failure, Outcome, Report, Result, WorkerStatus, from_here, quoted
from .run.books import Books
from .run.plan import Plan, make_plan
from .run.screen import INFO, Screen, screen_for
from .run.stopping import SHORT, Loop, StopRequests, shorten

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from .run.loop import Run


class ResumableRunner(Hooks[Result]):
    """Calls a function for every file of a glob, in worker processes, and saves what it returns.

    Run it again with the same checkpoint, and it continues where it was, whatever ended it. Making
    a runner is cheap: only `run` starts processes and touches the checkpoint. A subclass may
    override the methods of `Hooks`, for instance to save elsewhere.

    Args:
        function: called with a path in a worker process; returns anything that can be pickled.
        pattern: a glob, as for `glob.glob(pattern, recursive=True)`, or an iterable of paths. Only
            files count, and never the checkpoint itself. Files of a glob are processed in sorted
            order, files of an iterable in its order. Relative paths start at the directory in which
            you call `run`, and each call of `function` starts there.
        checkpoint: where results are saved; the suffix names the format: `.pkl` or `.pickle` (any
            result), `.jsonl` (results that are JSON), `.sqlite`, `.sqlite3` or `.db`.
        max_workers: number of worker processes; by default as many as the processors that this
            process may use. Never more are started than there are files to do.
        initializer: called once in each worker, before its first file: load a model here.
        initargs: arguments of `initializer`.
        mp_context: a multiprocessing context, or `"fork"`, `"spawn"` or `"forkserver"`. By default
            the platform's. On Linux it is fork if the default could not send the function (a
            lambda, a notebook's cell), or may send an older one (a script run again at a prompt).
        max_tasks_per_child: number of files after which a worker is replaced by a fresh one; by
            default never.
        timeout: seconds for one file, from the start of its call. When they are over, the file has
            failed, and its worker's process group is killed, with everything that the function
            started. Time in which the machine or this process is stopped does not count, and
            neither does `initializer`.
        retries: number of further attempts for a file that fails in this run, for whatever reason.
            They come after all other files have had their first attempt. If the file killed its
            worker, it gets a fresh one.
        retry_delay: seconds to wait before a further attempt at a file, doubled each time, up to
            ten minutes. Other files continue meanwhile, and a stop does not wait.
        retry_failed: whether to try files again that failed in an earlier run. If not, they are
            left alone even if they have changed since.
        max_failures: stop the run, as after a Ctrl-C, when more files than this have failed in it.
        largest_first: hand out big files first instead of in path order, so that the run does not
            end with one big file.
        rerun_changed: whether to process a file again if its size or modification time is no longer
            what it was. It keeps its result until there is a new one.
        save_every: how many results are saved together; none waits longer than `save_interval`.
        save_interval: seconds. Also, data are forced to disk at most this often. What is saved
            survives the death of any process at once, and a power cut after this time.
        grace_period: seconds that files in progress may take after SIGTERM or SIGHUP.
        stop_after: seconds after which the run stops as by `stop`: files in progress are finished,
            and the next run does the rest.
        progress: whether to show progress on stderr. By default a line is drawn if that is a
            terminal or a notebook. `True`: elsewhere, a line every ten seconds as well. `False`:
            nothing at all. Or a callable such as `tqdm.tqdm`: called in this thread with `total=`,
            `initial=`, `desc=` and `unit=`, then `.update(n)` and `.close()` of what it returned.
        executor: a `concurrent.futures.Executor` (Dask's, MPI's) whose workers call the function
            instead of ours. It is not shut down. `max_workers` is then how many batches of files it
            gets at a time: by default as many as it says it has workers, otherwise twice the number
            of processors that this process may use. It cannot be combined with `timeout`,
            `max_tasks_per_child`, `mp_context` and `workers()`.
        shard: `(k, n)`: only the files in part `k` of `n`, counted from 0, for array jobs that each
            have their own checkpoint. A hash of the path decides which part a file is in.

    Raises:
        TypeError, ValueError: an argument is not as described above, or the start method that you
            asked for cannot send the function to a process.
        FileNotFoundError, IsADirectoryError: the checkpoint's folder does not exist, or the
            checkpoint is a folder.
    """

    def __init__(
        self,
        function: Callable[[str], Result],
        pattern: Paths,
        checkpoint: str | os.PathLike[str] | Checkpoint,
        *,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        mp_context: BaseContext | str | None = None,
        max_tasks_per_child: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        retry_delay: float = 0.0,
        retry_failed: bool = True,
        max_failures: int | None = None,
        largest_first: bool = False,
        rerun_changed: bool = False,
        save_every: int = 1,
        save_interval: float = 1.0,
        grace_period: float = 10.0,
        stop_after: float | None = None,
        progress: bool | Callable[..., Any] | None = None,
        executor: Executor | None = None,
        shard: tuple[int, int] | None = None,
    ) -> None:
        given = SimpleNamespace(**locals())
        self._function = function
        if overrides(self, "process_file"):
            given.function = self.process_file
        try:
            self._options = check_options(given)
            for name in (*SAVER_HOOKS, "on_saved"):
                check_callable(name, getattr(self, name))
        except (TypeError, ValueError, OSError) as error:  # where in our code is of no interest
            raise error.with_traceback(None) from error.__cause__
        self._pattern = self._options.pattern
        self._checkpoint = self._options.checkpoint
        self._running = threading.Lock()
        self._life: Owned | None = None  # during a run
        self._stop_requests: StopRequests | None = None
        self._ring: Run | None = None

    def run(self) -> Report:
        """Process every file that has no saved result, and return when everything is saved.

        You may call it again, and from any thread. A first Ctrl-C lets the files in progress
        finish, a second one abandons them. SIGTERM and SIGHUP let them finish for `grace_period` at
        most. In all cases what has arrived is saved, and then the signal has its usual effect. Only
        in the main thread are signals handled.

        Raises:
            KeyboardInterrupt: after a Ctrl-C, once everything is saved.
            CheckpointLocked: another run is writing to the checkpoint.
            CheckpointError: it is something else, or damaged; nothing was changed.
            SaverError: results could not be saved.
            WorkerStartError: the function could not be loaded, the initializer raised, or the
                system would not start a process.
            ExecutorError: the executor is broken, or sends nothing back.
            RuntimeError: this runner is running already.
        """
        try:
            for _ in self._outcomes(watched=False):
                pass
        except SHORT as error:
            shorten(error)
            raise error
        return self._report

    def as_completed(self) -> Iterator[Outcome[Result]]:
        """The same as `run`, but yields each outcome once it is saved.

        A slow loop slows the run down: no new files are handed out until it asks for more. Memory
        stays flat, since values are read back from the checkpoint. If you leave the loop early, the
        run stops as by `stop`: files in progress are finished first. A Ctrl-C does not interrupt
        the loop: as with `run`, files in progress are finished, then `KeyboardInterrupt` is raised.

        Yields:
            What became of a file, with its value or its failure.

        Raises:
            The same as `run`, at the first step or later.
        """
        return Loop(self._outcomes(watched=True))

    def workers(self) -> list[WorkerStatus]:
        """What each worker is doing, by slot; empty if nothing is running. From any thread."""
        self._check_process()
        return ring.workers() if (ring := self._ring) is not None else []

    def stop(self) -> None:
        """Stop the run, from any thread or a callback: like a first Ctrl-C, but `run` returns its
        report. Has no effect if nothing is running."""
        self._check_process()
        if (stop_requests := self._stop_requests) is not None:
            stop_requests.ask()

    def pending(self) -> list[str]:
        """The files that `run` would process now, in order; raises `CheckpointError` like it."""
        self._check_process()
        files, by_path, _ = self._files()
        return [*self._plan(sorted(files) if by_path else files).to_do]

    @property
    def results(self) -> Mapping[str, Result]:
        """Path to value, for every file that has one: read at each access, also while a run goes
        on."""
        if overrides(self, "save", "load_completed", "read_result"):
            paths = functools.partial(completed_elsewhere, self)
            return ByPath(paths, self.read_result, "results, saved elsewhere")
        return self._checkpoint

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Path to `Failure`, for every file that stands as failed: read like `results`."""
        failures = self._checkpoint.failures()
        if not (overrides(self, "save") and overrides(self, "load_completed")):
            return failures
        done = {*completed_elsewhere(self)}  # since, and the checkpoint was not told
        standing = {path: failures[path] for path in failures if path not in done}
        return ByPath(standing.keys, standing.__getitem__, "failures")

    def _check_process(self) -> None:
        """Raise `RuntimeError` in a copy, in which there is no run."""
        if not hasattr(self, "_life"):
            raise RuntimeError(
                "this is a copy of a runner (it was pickled or copied, or is in a worker or the "
                "saver), or its class has not called super().__init__: it cannot run or be "
                "stopped, and does not know what is to do or what workers are doing. Use the "
                "runner itself, in its process, or make another one"
            )
        if self._life is not None:
            self._life.check_process()

    def _files(self, told: Told = lambda number: None) -> tuple[list[str], bool, str]:
        """The files of the run; whether their order is that of the paths, in which they are not
        yet; and if the pattern finds none, what to say of that."""
        pattern = self._pattern
        if overrides(self, "collect_files"):
            pattern = check_pattern(self.collect_files(), f"{type(self).__name__}.collect_files()")
        files = self._checkpoint.others(list_files(pattern, told, in_order=False))
        note = "" if files else nothing_found(pattern)
        shard = self._options.shard
        if shard is not None:
            files = [path for path in files if is_in_shard(path, shard)]
        return files, isinstance(pattern, str), note

    def _plan(self, files: list[str]) -> Plan:
        elsewhere = None
        if overrides(self, "load_completed"):
            elsewhere = {*completed_elsewhere(self)}
        return make_plan(files, self._checkpoint, self._options, elsewhere)

    def _outcomes(self, watched: bool) -> Generator[Outcome[Result], None, None]:
        """The run: yields the outcomes that are saved, if somebody watched, and leaves a report."""
        self._check_process()
        if not self._running.acquire(blocking=False):
            raise RuntimeError("this runner is running already; make another, or wait for it")
        begun, options = monotonic(), self._options
        with Owned() as life, life:  # twice, as in `Run.go`
            self._life = life
            life.callback(self._running.release)
            name = getattr(options.setup.function, "__name__", "files")
            screen = screen_for(options.progress, sys.stderr, name)
            requests = self._stop_requests = StopRequests(options.stop_after)
            life.push(functools.partial(self._let_go, requests, screen))
            where = quoted(self._checkpoint.path)
            screen.log(INFO, f"a run of {name!r} begins, with the checkpoint {where}")
            with screen.looks_for_files() as told:
                files, by_path, note = self._files(told)
            for text in [*filter(None, [note]), *(self._checkpoint.settle() or ())]:
                screen.announce(text)
            make_plan = functools.partial(self._plan, files)
            books = Books(options, plan := make_plan(), overrides(self, "save_failures"))
            if plan.to_do:
                if by_path:  # now that somebody needs it: it takes a third as long as listing them
                    files.sort()
                life.enter_context(requests)
                ring = self._ring = self._ring_for(make_plan, books, requests, screen)
                steps = ring.go()
                life.callback(requests.finish, steps)
                # A program may end with a loop that it still holds, and whose processes never do.
                atexit.register(life.close)
                life.callback(atexit.unregister, life.close)
                heard = watched or overrides(self, "on_saved")
                for finished in steps:
                    for path in finished if heard else ():
                        screen.clear()
                        outcome = self._read_outcome(path, ok=not books.has_failed(path))
                        self.on_saved(outcome)
                        if watched:
                            yield outcome
                        life.check_process()
            elif plan.total:
                screen.has_nothing_to_do(plan, quoted(from_here(self._checkpoint.path)))
            done = books.skipped + books.completed
            knows = overrides(self, "load_completed", "collect_files")  # what need not be done
            if overrides(self, "save") and not knows and done > len(self._checkpoint):
                screen.announce(
                    f"{type(self).__name__} saves elsewhere, and must override load_completed, "
                    "too: without it the next run does these files again"
                )
            self._report = books.report(self._checkpoint.failures(), monotonic() - begun, note)
            screen.log(INFO, f"the run has ended: {self._report}")

    def _ring_for(
        self, make_plan: Callable[[], Plan], books: Books, requests: StopRequests, screen: Screen
    ) -> Run:
        # What starts processes is slow to import, and often there is nothing to do. What another
        # thread forks in the middle of that could never import it.
        with undivided():
            from .run.loop import Run
            from .run.processes import Crew
            from .saver.saving import Saving

            crew: type[Crew] = Crew
            if self._options.executor is not None:
                from .run.executors import FarCrew

                crew = FarCrew
        options = self._options
        hooks = self if overrides(self, *SAVER_HOOKS) else None
        if hooks is not None or (overrides(self, "process_file") and options.executor is None):
            check_sent(self, options.context)
        how_often = options.save_every, options.save_interval
        saving = Saving(self._checkpoint, hooks, *how_often, patience=options.timeout)
        return Run(options, saving, make_plan, books, requests, screen, crew)

    def _let_go(self, requests: StopRequests, screen: Screen, *raised: Any) -> None:
        """The run is over: the signals that came during it take their effect."""
        self._life = self._stop_requests = self._ring = None
        if isinstance(error := raised[1], Exception):
            left = isinstance(error.__context__, GeneratorExit)
            screen.breaks(error, hidden=left or bool(requests.signals))
        requests.deliver()
