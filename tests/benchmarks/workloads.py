"""What is measured, and what we aim for: a table, one entry for each kind of work."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .inputs import Contents

EVERYBODY = (
    "ours pool-tuned executor-tuned joblib mpire pebble pool executor "
    "pool-log pool-sqlite pool-diskcache joblib-memory template parallel"
)
POOLS = "ours pool-tuned executor-tuned joblib mpire pebble pool template"
IDEAL = "ideal"  # what workers would take that cost nothing and always had something to do


@dataclass(frozen=True)
class Target:
    """What a number of ours is to be: at most so much, or at most so many times another's."""

    at_most: float
    measure: str = "seconds"  # a field of a table's row
    of: str | None = "best peer"  # or a contender's key, or IDEAL; None: `at_most` is absolute
    files: int | None = None  # with so many; None: with any number


@dataclass(frozen=True)
class Workload:
    """One kind of work, for the contenders whom it says something about."""

    key: str
    shows: str
    function: str  # in work.py
    sizes: tuple[int, ...]  # how many files
    contenders: str = EVERYBODY
    contents: Contents = lambda number, count: ""
    chunk: int = 1  # the best chunk size for those who can be told
    targets: tuple[Target, ...] = ()
    quick: Mapping[str, Any] = field(default_factory=dict)  # what is else with --quick
    ideal: bool = False  # the files say how many seconds they take
    idle_for: float | None = None  # s in which everybody only waits
    method: str | None = None  # a start method, or the platform's
    done_before: bool = False  # every file has its result already
    grows: bool = False  # the sizes are there for the exponent
    caps: Mapping[str, int] = field(default_factory=dict)  # files for contenders that are too slow
    most_rounds: int = 99  # it takes long, and differs little from one time to the next
    optional: bool = False  # takes so long that one has to ask for it

    def quickly(self) -> Workload:
        """The same in seconds: to see that it works, not how fast it is."""
        return replace(self, **self.quick)


def _slow_at_random(number: int, count: int) -> str:
    chosen = random.Random(1).sample(range(count), count // 100)
    return "0.5" if number in chosen else "0.001"


def _slow_periodically(number: int, count: int) -> str:
    return "0.5" if number % 100 == 0 else "0.001"


def _slow_at_the_end(number: int, count: int) -> str:
    return "0.5" if number >= count - count // 100 else "0.001"


NO_OP = Workload(
    "no-op",
    "A function that does nothing but return a dict of five fields, some 90 bytes when it is "
    "pickled: what is left is what a pool costs. Slow contenders get fewer files; compare the time "
    "per file.",
    function="small_result",
    sizes=(100_000,),
    chunk=256,
    caps={
        "executor": 20_000,
        "pool-diskcache": 5_000,
        "joblib-memory": 5_000,
        "template": 10_000,
        "parallel": 200,
    },
    targets=(
        Target(1.3),
        Target(1.6, "cpu", "pool-tuned"),
        Target(0.8, of="pool-log"),
        Target(1.1, "written_ratio", None),
    ),
    quick={"sizes": (1_000,)},
)
READS = Workload(
    "reads",
    "A function that reads its file, 2 kB of words, and counts them: the least that is of use.",
    function="counts_words",
    sizes=(50_000,),
    contenders="ours pool-tuned executor-tuned pool-log pool-sqlite",
    contents=lambda number, count: f"{number:06} is a word. " * 125,
    chunk=64,
    targets=(Target(0.8),),
    quick={"sizes": (500,)},
)
RESULTS_50_KB = Workload(
    "50-kB",
    "Results of 50 kB, 1 GB in all: whether they stream to the disk, or pile up in memory. Slow "
    "contenders get fewer files.",
    function="medium_result",
    sizes=(20_000,),
    contenders="ours pool-tuned executor-tuned joblib mpire pebble pool pool-log pool-sqlite "
    "pool-diskcache joblib-memory template",
    chunk=16,
    caps={"pool-diskcache": 5_000, "joblib-memory": 5_000, "template": 1_000},
    targets=(Target(0.5), Target(100e6, "memory", None), Target(1.1, "written_ratio", None)),
    quick={"sizes": (200,)},
)
COMPUTES = Workload(
    "10-ms",
    "10 ms of CPU for each file: what little is left of the pool's cost when there is real work.",
    function="computes",
    sizes=(400,),
    contents=lambda number, count: "0.01",
    chunk=16,
    ideal=True,
    targets=(Target(1.01), Target(1.075, of=IDEAL)),
    quick={"sizes": (20,)},
)
COMPUTES_BRIEFLY = replace(
    COMPUTES,
    key="1-ms",
    shows="1 ms of CPU for each file: every result is saved as it comes, so the saver wakes often.",
    sizes=(4_000,),
    contents=lambda number, count: "0.001",
    contenders="ours pool-tuned executor-tuned pool pool-log",
    targets=(Target(1.015),),
    quick={"sizes": (200,)},
)
SKEWED = [
    Workload(
        f"skewed-{where}",
        f"One file in a hundred waits 0.5 s, the others 1 ms; the slow ones {how}. Whether anybody "
        "has nothing to do while others still have.",
        function="sleeps",
        sizes=(2_000,),
        contenders=POOLS,
        contents=contents,
        chunk=16,
        ideal=True,
        targets=(Target(1.03, of=IDEAL), Target(0.3, "cpu", None)),
        most_rounds=3,
        quick={"sizes": (200,)},
    )
    for where, how, contents in [
        ("random", "lie anywhere", _slow_at_random),
        ("periodic", "are every hundredth", _slow_periodically),
        ("end", "come last", _slow_at_the_end),
    ]
]
RESUME = Workload(
    "resume",
    "Everything is done before: how long until the run knows. A dict that was pickled in one piece "
    "has to be read whole, with all values, by whoever goes on from it.",
    function="small_result",
    sizes=(100_000,),
    contenders="ours template pickle-load",
    done_before=True,
    targets=(Target(0.5, of="pickle-load"),),
    quick={"sizes": (1_000,)},
)
RESUME_MILLION = replace(
    RESUME,
    key="resume-million",
    sizes=(1_000_000,),
    targets=(Target(0.5, of="pickle-load"), Target(0.67, "memory", "pickle-load")),
    optional=True,
)
RESUME_TEXTS = replace(
    RESUME,
    key="resume-texts",
    shows="The same with values that are read back as fast as any: texts of 100 characters.",
    function="text_result",
    targets=(Target(1.0, of="pickle-load"),),
)
RESUME_TEXTS_MILLION = replace(
    RESUME_TEXTS,
    key="resume-texts-million",
    sizes=(1_000_000,),
    targets=(Target(1.0, of="pickle-load"), Target(0.67, "memory", "pickle-load")),
    optional=True,
)
GROWTH = Workload(
    "growth",
    "The no-op again, by the number of files. The exponent says by how much the CPU beyond that of "
    "ten files grows from the last size but one to the last: 1 is proportional, 2 is quadratic.",
    function="small_result",
    sizes=(10, 1_000, 10_000, 100_000),
    contenders="ours pool-tuned executor-tuned template",
    chunk=256,
    caps={"template": 10_000},
    grows=True,
    targets=(Target(1.05, "exponent", None),),
    quick={"sizes": (10, 100, 1_000)},
)
GROWTH_MILLION = replace(
    GROWTH,
    key="growth-million",
    sizes=(10, 100_000, 1_000_000),
    contenders="ours pool-tuned executor-tuned",
    optional=True,
)
IDLE = Workload(
    "idle",
    "Two files, each of which waits 20 s: the CPU of all processes in the 18 s in the "
    "middle, in which nothing happens.",
    function="sleeps",
    sizes=(2,),
    contenders="ours pool executor joblib mpire pebble template",
    contents=lambda number, count: "20",
    idle_for=20.0,
    most_rounds=1,
    targets=(Target(0.05, "idle_cpu", None),),
    quick={"contents": lambda number, count: "2", "idle_for": 2.0},
)
START = [
    Workload(
        f"start-{method}",
        f"No file and four files, with the start method {method}: what it takes to start and stop.",
        function="small_result",
        sizes=(0, 4),
        contenders="ours pool",
        method=method,
        targets=(Target(1.6, files=0), Target(1.25, files=4)),
    )
    for method in ("fork", "spawn", "forkserver")
]
HUGE = Workload(
    "500-MB",
    "One result of 500 MB: how often it is copied on its way. We have it on disk at the end, the "
    "pools in memory.",
    function="huge_result",
    sizes=(1,),
    contenders="ours pool executor template",
    contents=lambda number, count: "500000000",
    quick={"contents": lambda number, count: "5000000"},
)

WORKLOADS = MappingProxyType(
    {
        workload.key: workload
        for workload in [
            NO_OP,
            READS,
            RESULTS_50_KB,
            COMPUTES_BRIEFLY,
            COMPUTES,
            *SKEWED,
            RESUME,
            RESUME_TEXTS,
            GROWTH,
            IDLE,
            *START,
            HUGE,
            RESUME_MILLION,
            RESUME_TEXTS_MILLION,
            GROWTH_MILLION,
        ]
    }
)
