"""Tests of the folder of that name in the package."""
