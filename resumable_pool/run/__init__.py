"""The side of one run that lives in the process of the caller."""
