"""The command line: its verbs, and how a function is found by its name."""
