"""The promises, in the order in which a person would ask. Each is a function; its docstring is the promise.

They know nothing of the session they are put to but the SDK's four methods, and import nothing else of this package.
"""

from agents_pg_session.testing.promises import (  # isort: skip - in the order in which a person would ask
    protocol,
    fidelity,
    order,
    once,
    truth,
    cancellation,
    resources,
    loops,
    setup,
    compaction,
)
from agents_pg_session.testing.promises.registry import PROMISES, Broken, NotApplicable, Promise
from agents_pg_session.testing.promises.subject import Subject

__all__ = [
    "PROMISES",
    "Broken",
    "NotApplicable",
    "Promise",
    "Subject",
    "cancellation",
    "compaction",
    "fidelity",
    "loops",
    "once",
    "order",
    "protocol",
    "resources",
    "setup",
    "truth",
]
