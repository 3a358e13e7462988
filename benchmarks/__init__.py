"""Benchmarks: this package beside what people use now, on one server, in one run. `python -m benchmarks --help`."""
