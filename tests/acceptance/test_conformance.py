"""The conformance kit: our own session keeps all its promises, broken ones are found out, and its page is true."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from agents_pg_session.testing import PROMISES, NotApplicable, Promise, Subject, survey, table
from tests.acceptance import broken_sessions, sessions_of_others
from tests.acceptance.broken_sessions import Doubles, Leaks, Loses, Piecewise, Plain, Reorders, SaysEmpty
from tests.programs import Python
from tests.tally import Tally

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"

#: On SQLite, those that need no server.
HERE = [promise for promise in PROMISES if promise.needs == "nothing" or promise.name == "reading_creates_nothing"]
WAITING = {"a_frozen_connection_holds_nobody_for_ever", "a_database_that_is_away_is_an_error"}
#: Not asked in the suite: over psycopg what is not of these groups, there and on SQLite what takes long, and over
#: asyncpg what tests/migrations/test_races.py has in each run.
OF_THE_DRIVER = {"exactly once", "truth", "cancellation"}  # the rest has tests/contract
SLOW = {"a_cancelled_call_settles", "a_large_item_survives"}
NOT_ASKED = {
    "asyncpg": {"processes_may_create_the_tables_at_once"},
    "sqlite": SLOW | {"what_was_read_stays", "a_hundred_callers_get_their_turn"},
    "psycopg": SLOW
    | WAITING
    | {"a_crash_loses_nothing_acknowledged", "a_cancelled_call_settles_on_a_slow_network"}
    | {"a_cut_append_is_whole", "a_cut_pop_takes_one", "a_cut_clear_clears_all_or_nothing"}  # who keeps those
    | {"a_cut_read_is_true_or_an_error"}  # about lost connections that fail no call keeps these
    | {each.name for each in PROMISES if each.group not in OF_THE_DRIVER},
}

#: What the kit must be able to tell apart, by promises that are quick.
TELLING = {
    "items_come_back_in_order",
    "a_limit_of_zero_is_nothing",
    "a_refused_batch_writes_nothing",
    "no_read_sees_part_of_a_batch",
    "a_slow_writer_does_not_rewrite_the_past",
    "every_item_is_popped_once",
    "a_cut_append_is_whole",
    "a_cut_pop_takes_one",
    "a_lost_connection_fails_no_append",
    "a_cut_read_is_true_or_an_error",
    "cancelled_calls_leave_nothing_in_use",
}
#: In the suite, what else is asked of those with a fault: the sound one is asked everything.
KEPT = {"items_come_back_in_order", "a_limit_of_zero_is_nothing", "every_item_is_popped_once"}
NO_RETRY = "a_lost_connection_fails_no_append"
BROKEN_BY = {
    Plain: {NO_RETRY},
    Loses: {NO_RETRY, "a_cut_append_is_whole"},
    Doubles: {NO_RETRY, "a_cut_append_is_whole"},
    Reorders: {NO_RETRY, "a_slow_writer_does_not_rewrite_the_past"},
    SaysEmpty: {NO_RETRY, "a_cut_read_is_true_or_an_error"},
    Leaks: {NO_RETRY, "cancelled_calls_leave_nothing_in_use"},
    Piecewise: {
        NO_RETRY,
        "a_refused_batch_writes_nothing",
        "no_read_sees_part_of_a_batch",
        "a_cut_append_is_whole",
    },
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask each backend; without `--thorough`, SQLite and psycopg what is quick, and psycopg what is of the driver."""
    if "promise" not in metafunc.fixturenames:
        return
    thorough = metafunc.config.option.thorough
    asked = [
        (over, each)
        for over in ("sqlite", "asyncpg", "psycopg")
        for each in PROMISES
        if (over != "sqlite" or each in HERE) and (thorough or each.name not in NOT_ASKED[over])
    ]
    metafunc.parametrize(("over", "promise"), asked, ids=str)


@pytest.fixture
def ours(over: str, promise: Promise, request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    """Our session on one of the three backends, as it comes, or giving up sooner where waiting is the point."""
    opener = sessions_of_others.ours_impatient if promise.name in WAITING else sessions_of_others.ours
    if over == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), path := tmp_path / "sessions.db")
        return Subject(opener, f"sqlite+aiosqlite:///{path}")
    url = make_url(request.getfixturevalue("postgres_url")).set(drivername=f"postgresql+{over}")
    return Subject(opener, url.render_as_string(hide_password=False))


async def test_our_session_keeps_it(over: str, promise: Promise, ours: Subject, thorough: bool, tally: Tally) -> None:
    """`PGSession` keeps every promise of the kit that can be asked, on SQLite and on PostgreSQL over both drivers."""
    for _ in range(3 if thorough and promise.races else 1):
        await promise.check(ours)
        tally.add("Conformance kit on our session", promises_kept=1)


@pytest.mark.parametrize("kind", BROKEN_BY, ids=lambda kind: kind.__name__)
async def test_the_kit_finds_it_out(
    kind: type[Plain], new_database: Callable[[], str], thorough: bool, tally: Tally
) -> None:
    """A session that loses, doubles, reorders, calls an error empty, leaks or tears batches breaks that promise.

    And no other: what it does well is not held against it.
    """
    url = await asyncio.to_thread(new_database)
    subject = Subject(broken_sessions.opener(kind), url, broken_sessions.create_tables)
    asked = TELLING if thorough or kind is Plain else BROKEN_BY[kind] | KEPT
    report = await survey(subject, [each for each in PROMISES if each.name in asked], rounds=1)
    tally.add("Conformance kit on broken sessions", sessions=1, promises=len(asked), broken=len(report.broken))

    assert {each.name for each in report.broken} == BROKEN_BY[kind], str(report)
    assert len(report.kept) == len(asked) - len(BROKEN_BY[kind])


async def test_who_hangs_has_broken_it(postgres_url: str) -> None:
    """A call that never returns ends at the promise's time limit, not the test run's."""
    subject = Subject(lambda session_id, url: Hangs(session_id, url), postgres_url)
    [quick] = [each for each in PROMISES if each.name == "items_come_back_in_order"]
    report = await survey(subject, [with_limit(quick, 0.2)])

    assert [answer.why for answer in report.answers] == ["no end within 0 s"]


async def test_what_cannot_be_asked_is_said(tmp_path: Path) -> None:
    """On SQLite, what is about PostgreSQL is neither kept nor broken; pytest shows it as skipped."""
    subject = Subject(sessions_of_others.ours, f"sqlite:///{tmp_path}/sessions.db")
    [away] = [each for each in PROMISES if each.name == "a_database_that_is_away_is_an_error"]
    report = await survey(subject, [away])

    assert str(report.answers[0]) == "not applicable: it is about PostgreSQL"
    with pytest.raises(NotApplicable, match="it is about PostgreSQL"):
        await away.check(subject)


def test_the_ten_lines_run(python: Python, tmp_path: Path, new_database: Callable[[], str]) -> None:
    """The example of the page, as a file of its own with nothing but the kit, keeps its promises and is ten lines."""
    [example] = [block for block in blocks("python") if "PROMISES" in block]
    assert len([line for line in example.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    url = sessions_of_others.asyncpg_url(new_database())
    (tmp_path / "test_my_session.py").write_text(re.sub(r'"postgresql[^"]*"', repr(url), example))
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-k", "protocol or limit or pop_takes"]
    result = python("-m", "pytest", *options, tmp_path, cwd=tmp_path, env=os.environ)

    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_the_command_prints_the_table(python: Python, postgres_url: str) -> None:
    """`python -m agents_pg_session.testing package.module:open_session` prints what is kept; its code says so too."""
    command = ["-m", "agents_pg_session.testing", "tests.acceptance.sessions_of_others:ours"]
    chosen = ["--url", postgres_url, "--only", "a_limit_of_zero_is_nothing", "--only", "pop_takes_the_newest"]
    result = python(*command, *chosen, cwd=ROOT, env=os.environ)

    assert result.returncode == 0, result.stderr
    assert "2 promises kept, 0 broken, 0 not applicable" in result.stdout


def test_the_page_lists_every_promise() -> None:
    """The table in docs/conformance.md has a row for each promise, in order, with its sentence, and no other."""
    rows = re.findall(r"^\| `(\w+)` (.*?) \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)

    assert rows == [(each.name, escaped(each.sentence)) for each in PROMISES]


def test_every_promise_is_one_sentence_and_asked_of_strangers() -> None:
    """Promises have names of their own, say what they promise, and import nothing of our session."""
    names = [each.name for each in PROMISES]
    sources = (ROOT / "agents_pg_session" / "testing" / "promises").glob("*.py")
    imports = re.findall(r"agents_pg_session[\w.]*", "\n".join(path.read_text(encoding="utf-8") for path in sources))

    assert len(set(names)) == len(names) > 50
    assert all(each.sentence.endswith(".") for each in PROMISES)
    assert all(name.startswith("agents_pg_session.testing") for name in imports)


async def test_the_sdks_own_session(new_database: Callable[[], str], thorough: bool) -> None:
    """The page says the truth about `SQLAlchemySession`, as far as it is not a matter of luck.

    The whole survey with `--thorough`; three promises of it in the suite.
    """
    quick = {"a_slow_writer_does_not_rewrite_the_past", "a_connection_that_died_idle_fails_nothing", "nul_survives"}
    asked = [each for each in PROMISES if thorough or each.name in quick]
    url = await asyncio.to_thread(new_database)
    one_engine = Subject(sessions_of_others.sdk_with_one_engine, url, close=sessions_of_others.give_back)
    report = await survey(one_engine, asked)
    said = outcomes_on_the_page("SQLAlchemySession, one engine")

    lucky = {each.name for each in PROMISES if each.races}
    found = {answer.promise.name: answer.outcome for answer in report.answers if answer.promise.name not in lucky}
    assert found == {name: said[name] for name in found}, table({"SQLAlchemySession": report})


class Hangs(Plain):
    """Waits for something that never comes."""

    async def add_items(self, items: object) -> None:
        await asyncio.Event().wait()


def with_limit(promise: Promise, seconds: float) -> Promise:
    return Promise(promise.name, promise.group, promise.sentence, "nothing", False, seconds, promise.ask)


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def outcomes_on_the_page(column: str) -> dict[str, str]:
    """Return what the page says in one column, by the promise's name."""
    text = PAGE.read_text(encoding="utf-8")
    [head] = re.findall(r"^\| promise \| (.*) \|$", text, flags=re.MULTILINE)
    place = head.split(" | ").index(column)
    marks = {"kept": "kept", "**broken**": "broken", "–": "not applicable"}
    rows = re.findall(r"^\| `(\w+)` .*? \| (.*) \|$", text, flags=re.MULTILINE)
    return {name: marks[cells.split(" | ")[place].partition(":")[0]] for name, cells in rows}


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
