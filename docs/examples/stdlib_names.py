"""Which names does Python's standard library define most often?

Works through every source file of the running interpreter's standard library: thousands of real
files, some of which cannot be parsed on purpose. Interrupt it, run it again, and it goes on:

    python3 -m docs.examples.stdlib_names
"""

import ast
import glob
import os
import sysconfig
import warnings
from collections import Counter

from resumable_pool import ResumableRunner

CHECKPOINT = "stdlib_names.pkl"


def defined_names(path: str) -> Counter[str]:
    """How often a file defines each of its functions, classes and methods."""
    warnings.simplefilter("ignore")  # about what the authors wrote, on purpose or not
    with open(path, "rb") as file:
        tree = ast.parse(file.read())
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return Counter(node.name for node in ast.walk(tree) if isinstance(node, definitions))


def standard_library() -> list[str]:
    """All its source files, without what was installed beside it."""
    pattern = os.path.join(sysconfig.get_path("stdlib"), "**", "*.py")
    return [path for path in glob.glob(pattern, recursive=True) if "site-packages" not in path]


if __name__ == "__main__":
    runner = ResumableRunner(defined_names, standard_library(), CHECKPOINT)
    print(runner.run())

    total: Counter[str] = Counter()
    for names in runner.results.values():
        total.update(names)
    print(f"\n{total.total():,} definitions of {len(total):,} names; the most frequent are")
    for name, count in total.most_common(10):
        print(f"{count:7,}  {name}")
    print(f"\nThe names of each file are in {CHECKPOINT}: delete it to start again.")
