"""Test kit: a real PostgreSQL, a proxy that does what networks do, and the promises any session of the SDK is held to.

    @pytest.mark.parametrize("promise", PROMISES, ids=str)
    async def test_promise(promise: Promise, subject: Subject) -> None:
        await promise.check(subject)

`subject` is a `Subject(open_session, url)`; `print(await survey(subject))` asks them all and prints a table, as does
`python -m agents_pg_session.testing package.module:open_session`. See docs/conformance.md.

Needs the extra `testing`. Nothing else of the package imports it.
"""

from agents_pg_session.testing.promises import PROMISES, Broken, NotApplicable, Promise, Subject
from agents_pg_session.testing.survey import Answer, Report, survey, table

__all__ = ["PROMISES", "Answer", "Broken", "NotApplicable", "Promise", "Report", "Subject", "survey", "table"]
