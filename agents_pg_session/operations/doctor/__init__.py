"""`doctor`: what is wrong with a store, and mending what can be mended without a doubt.

`examine` only reads: short statements by keyset, no lock, no snapshot that lasts, constant memory. `repair` takes one
session at a time, its row first, looks again under the lock, and writes down what it changed.
"""

from agents_pg_session.operations.doctor.examining import EXAMINATIONS, QUICK, Diagnosis, examine
from agents_pg_session.operations.doctor.findings import Finding, Place, Severity
from agents_pg_session.operations.doctor.repairs import BY_NAME, REPAIRS, SAFE, Change, Mended, repair

__all__ = [
    "BY_NAME",
    "EXAMINATIONS",
    "QUICK",
    "REPAIRS",
    "SAFE",
    "Change",
    "Diagnosis",
    "Finding",
    "Mended",
    "Place",
    "Severity",
    "examine",
    "repair",
]
