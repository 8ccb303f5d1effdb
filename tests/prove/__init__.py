"""Machines that try the promises: by hand before a release, and a little of each in every test run.

    python -m tests.prove [--only NAME...] [--minutes N]

docs/reliability.md says which promise each of them tries, and what it has found.
"""
