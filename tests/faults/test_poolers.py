"""Through PgBouncer in transaction mode, three server connections for everybody: all promises hold there.

Two versions, both drivers: 1.18 (`plain`, which knows no prepared statements and so needs `pgbouncer=True`) and a newer
one (`tracking`) that needs nothing. `make faults` runs the whole contract suite through both as well.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Literal

import asyncpg
import pytest
from agents import Runner
from sqlalchemy import URL, make_url, text

from agents_pg_session import PGSession, SessionConflict, SessionError, StorageUnavailable
from agents_pg_session.testing.pgbouncer import PgBouncer
from agents_pg_session.testing.proxy import Fault, Message, Proxy
from agents_pg_session.testing.server import Server
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.conftest import pgbouncer_program
from tests.faults.pooling import WAYS, Trouble, Way, opened, running
from tests.faults.verbs import VERBS, Verb, in_peace, known
from tests.items import user
from tests.migrations.actions import ROOT, complaints, environment
from tests.migrations.catalog import difference, of_postgres
from tests.programs import Python
from tests.tally import Tally

CLIENTS, STORES = 40, 8
ADVICE = "behind PgBouncer in transaction mode, open the store with pgbouncer=True"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Thoroughly, every way; in the suite both poolers and both drivers, or one through 1.18 where it takes long."""
    if "way" in metafunc.fixturenames:
        one = [WAYS[IN_TURN.index(metafunc.function) % 2]] if metafunc.function in IN_TURN else []
        ways = WAYS if metafunc.config.option.thorough else one or [WAYS[0], WAYS[3]]
        metafunc.parametrize("way", ways, ids=[f"{way.driver}-{way.kind}" for way in ways])


@pytest.fixture
def pooled_url(way: Way, pgbouncer: Callable[[str], PgBouncer], postgres_url: str) -> URL:
    """The test database behind PgBouncer."""
    return way.url(pgbouncer(way.kind), make_url(postgres_url).database)


async def test_every_verb_does_through_a_pooler_what_it_does_without(
    pooled_url: URL, postgres_url: str, observer: asyncpg.Connection, new_id: Callable[[], str], tally: Tally
) -> None:
    """Through PgBouncer each verb answers and leaves behind exactly what it does on a direct connection."""
    async with opened(postgres_url) as direct, opened(pooled_url) as pooled:

        async def compare(name: str, verb: Verb) -> None:
            here, there = direct.session(new_id()), pooled.session(new_id())
            answers = [await verb(session, in_peace) for session in (here, there)]
            done.append((name, answers[0] == answers[1], here, there))

        done: list[tuple[str, bool, PGSession, PGSession]] = []
        await asyncio.gather(*(compare(name, verb) for name, verb in VERBS.items()))

        for name, same, here, there in done:
            assert same, name
            assert await known(observer, here) == await known(observer, there), name
    tally.add("Poolers", verbs=len(VERBS))


async def test_a_connection_that_dies_behind_the_pooler(
    way: Way, proxy: Proxy, postgres_url: str, observer: asyncpg.Connection, new_id: Callable[[], str],
    thorough: bool, tally: Tally,
) -> None:  # fmt: skip
    """The server's connection dies under PgBouncer before, while or after a verb's statement runs: it happens once."""
    target = make_url(postgres_url).set(port=proxy.port).render_as_string(hide_password=False)
    tries = 0
    async with AsyncExitStack() as stack:
        url = way.url(stack.enter_context(running(way, target)), make_url(postgres_url).database)
        store = await stack.enter_async_context(opened(url, retry_for=60))

        def watch() -> None:
            proxy.watched = []

        def arm() -> None:
            proxy.fault = fault

        for name, verb in VERBS.items():
            for _ in range(2):  # the second time, whatever can be prepared is
                here = store.session(new_id())
                answer = await verb(here, watch)
                messages, proxy.watched = proxy.watched or [], None
            wanted = await known(observer, here)
            for fault in points(messages, thorough):
                there = store.session(new_id())
                assert await verb(there, arm) == answer, (name, fault)
                proxy.fault = None
                tries += 1

                assert await known(observer, there) == wanted, (name, fault)
    assert proxy.faults >= tries * 0.9, "a new connection of the server may take fewer messages than an old one"
    tally.add("Poolers", connections_cut_behind_it=proxy.faults)


def points(messages: Sequence[Message], thorough: bool) -> list[Fault]:
    """Return where to cut the server's connection: at the last message, when all is done; thoroughly, at each."""
    answers = [each for each in messages if each.side == "server"]
    if not thorough:
        return [Fault(side="server", passed=len(answers) - 1)]
    counts: tuple[tuple[Literal["client", "server"], int], ...] = (
        ("server", len(answers)),
        ("client", len(messages) - len(answers)),
    )
    return [Fault(side=side, passed=passed) for side, count in counts for passed in range(count)]


async def test_forty_clients_on_three_server_connections(
    way: Way, own_server: Server, new_id: Callable[[], str], thorough: bool, tally: Tally
) -> None:
    """40 clients share three connections of the server: nothing is lost or doubled, and everybody gets a turn."""
    share = 40 if thorough else 8
    names, most, acknowledged = [new_id() for _ in range(CLIENTS)], 0, Counter[str]()
    observer = await asyncpg.connect(own_server.url)
    while await observer.fetchval(SERVER_CONNECTIONS):
        await asyncio.sleep(0.01)  # those of the pooler before this one are still on their way out
    async with AsyncExitStack() as stack:
        bouncer = stack.enter_context(running(way, own_server.url))
        url = way.url(bouncer, "postgres")
        stores = [await stack.enter_async_context(opened(url, retry_for=60)) for _ in range(STORES)]

        async def write(number: int) -> None:
            session = stores[number % STORES].session(names[number])
            while acknowledged.total() < CLIENTS * share:
                await session.add_items([user(str(acknowledged[names[number]]))])
                acknowledged[names[number]] += 1

        writers = [asyncio.ensure_future(write(number)) for number in range(CLIENTS)]
        while not all(writer.done() for writer in writers):
            most = max(most, await observer.fetchval(SERVER_CONNECTIONS))
            await asyncio.sleep(0.01)
        await asyncio.gather(*writers)

        found = {name: await stores[0].session(name).get_items() for name in names}
    await observer.close()
    assert 1 <= most <= 3
    assert min(acknowledged.values()) >= share / 4, "each has about the same share"
    tally.add("Poolers", clients=CLIENTS, acknowledged=acknowledged.total())
    assert found == {name: [user(str(number)) for number in range(acknowledged[name])] for name in names}


SERVER_CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name = 'agents_pg_session' AND datname = current_database()
"""


async def test_a_load_through_a_pooler_in_trouble(
    way: Way, own_server: Server, new_id: Callable[[], str], thorough: bool, tally: Tally
) -> None:
    """Reconnected, paused, killed, crashed, the server killed behind it: what was acknowledged is there once."""
    names, shared, acknowledged, over = [new_id() for _ in range(CLIENTS)], new_id(), Counter[str](), False
    async with AsyncExitStack() as stack:
        bouncer = stack.enter_context(running(way, own_server.url, query_wait_timeout="3", server_connect_timeout="3"))
        url = way.url(bouncer, "postgres")
        stores = [await stack.enter_async_context(opened(url, retry_for=90)) for _ in range(STORES)]

        async def write(number: int) -> None:
            store, name = stores[number % STORES], names[number]
            while not over:
                await store.session(name).add_items([user(f"{acknowledged[name]}")] * 2)
                await store.session(shared).add_items([user(f"{name} {acknowledged[name]}")])
                acknowledged[name] += 1

        writers = [asyncio.ensure_future(write(number)) for number in range(CLIENTS)]
        troubles = Trouble(bouncer, own_server).everything * (4 if thorough else 1)
        for happen in troubles:
            before = acknowledged.total()
            await happen()
            while acknowledged.total() < before + CLIENTS and not any(writer.done() for writer in writers):
                await asyncio.sleep(0.02)
        over = True
        await asyncio.gather(*writers)

        found = {name: await stores[0].session(name).get_items() for name in names}
        seen = Counter(str(item) for item in await stores[0].session(shared).get_items())
    due = Counter(str(user(f"{name} {number}")) for name in names for number in range(acknowledged[name]))
    tally.add("Poolers", clients=CLIENTS, troubles=len(troubles), acknowledged=2 * acknowledged.total())
    tally.add("Poolers", lost=(due - seen).total(), doubled=(seen - due).total())
    assert seen == due
    assert found == {name: [user(f"{n // 2}") for n in range(2 * acknowledged[name])] for name in names}


async def test_a_pooler_that_stays_paused(way: Way, own_server: Server, new_id: Callable[[], str]) -> None:
    """Paused for longer than the budget, an append raises and says what is known; resumed, it is there once at most."""
    async with AsyncExitStack() as stack:
        bouncer = stack.enter_context(running(way, own_server.url))
        url = way.url(bouncer, "postgres")
        patient = (await stack.enter_async_context(opened(url, retry_for=60))).session(new_id())
        hasty_store = await stack.enter_async_context(opened(url, retry_for=0.6, command_timeout=0.2))
        hasty = hasty_store.session(patient.session_id)
        await patient.add_items([user("before")])
        async with hasty_store.engine.connect():
            pass  # it has a connection now: what comes is about the statement
        await bouncer.admin("PAUSE")
        with pytest.raises(StorageUnavailable, match="it has taken effect once, whole, or not at all"):
            await hasty.add_items([user("meanwhile")])
        with pytest.raises(StorageUnavailable):
            await hasty.get_items()
        await bouncer.admin("RESUME")
        await patient.add_items([user("after")])

        items = await patient.get_items()
    assert [each for each in items if each != user("meanwhile")] == [user("before"), user("after")]
    assert len(items) <= 3


async def test_one_of_many_gets_a_claim_and_a_lease(pooled_url: URL, new_id: Callable[[], str]) -> None:
    """Claims and leases are columns, not locks of a connection: through a pooler, too, one of many gets them."""
    inside, most = 0, 0
    async with opened(pooled_url) as one, opened(pooled_url) as other:
        name = new_id()
        session = one.session(name)
        agent = scripted(calls("refund", "r1", amount=5))
        await session.pause(await Runner.run(agent, "refund", session=session, run_config=QUIET))
        handles = [store.session(name) for store in (one, other) for _ in range(10)]
        claims = await asyncio.gather(*(each.resume(scripted()) for each in handles), return_exceptions=True)

        async def alone(handle: PGSession) -> None:
            nonlocal inside, most
            async with handle.exclusive(wait=60):
                inside += 1
                most = max(most, inside)
                await handle.events.record("alone")
                inside -= 1

        await asyncio.gather(*(alone(store.session(name)) for store in (one, other) for _ in range(4)))

    assert len([each for each in claims if not isinstance(each, BaseException)]) == 1
    assert all(isinstance(each, SessionConflict) for each in claims if isinstance(each, BaseException))
    assert most == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_forgotten_switch(driver: str, postgres_url: str, new_id: Callable[[], str]) -> None:
    """Without `pgbouncer=True`, PgBouncer 1.18 mixes up prepared statements: the error says what to write."""
    async with AsyncExitStack() as stack:
        bouncer = stack.enter_context(running(Way(driver, "plain"), postgres_url))
        url = bouncer.url(str(make_url(postgres_url).database), f"postgresql+{driver}")
        one, other = [await stack.enter_async_context(opened(url, engine_kwargs={"pool_size": 1})) for _ in range(2)]
        session = one.session(new_id())
        for _ in range(8):  # psycopg prepares a statement from its sixth use on
            await session.get_items()
        # In a transaction, on the connection that knows the statement: it was used last.
        async with other.engine.connect() as holder:
            await holder.execution_options(isolation_level="READ COMMITTED")
            await holder.execute(text("SELECT 1"))
            with pytest.raises(SessionError, match=ADVICE):
                await session.get_items()


async def test_the_statement_of_another_client(postgres_url: str, new_id: Callable[[], str]) -> None:
    """The same advice for values that reached another client's statement, which takes more or fewer of them."""
    async with AsyncExitStack() as stack:
        bouncer = stack.enter_context(running(Way("psycopg", "plain"), postgres_url))
        url = bouncer.url(str(make_url(postgres_url).database), "postgresql+psycopg")
        settings = {"pool_size": 1}
        one, other, third = [await stack.enter_async_context(opened(url, engine_kwargs=settings)) for _ in range(3)]
        session = one.session(new_id())
        for _ in range(8):
            await session.get_items()
        async with third.engine.connect() as holder:
            await holder.execution_options(isolation_level="READ COMMITTED")
            await holder.execute(text("SELECT 1"))
            for _ in range(8):
                await other.session(new_id()).events.list()  # prepared under the same name, on the next connection
            with pytest.raises(SessionError, match=rf"bind message supplies .*{ADVICE}"):
                await session.get_items()


async def test_what_a_pooler_refuses_is_not_waited_for(
    way: Way, pgbouncer: Callable[[str], PgBouncer], postgres_url: str, new_id: Callable[[], str]
) -> None:
    """A setting, a database or a password that PgBouncer will never take is said at once, with its own words."""
    strict = PgBouncer(
        pgbouncer_program(way.kind), postgres_url, settings={"auth_type": "md5", "auth_file": "users.txt"}
    )
    (strict.folder / "users.txt").write_text('"postgres" "secret"\n')
    strict.start()
    bouncer, database = pgbouncer(way.kind), make_url(postgres_url).database
    refused = {
        "unsupported startup parameter": way.url(bouncer, database).update_query_dict({"options": "-c jit=off"}),
        'database "missing_here" does not exist': way.url(bouncer, "missing_here"),
        "password authentication failed": way.url(strict, database).set(password="hunter2"),
    }
    try:
        for words, url in refused.items():
            async with opened(url, retry_for=100) as store:
                with pytest.raises(StorageUnavailable, match="check the database URL") as failure:
                    async with asyncio.timeout(50):
                        await store.session(new_id()).get_items()
            assert words in str(failure.value)
            assert "hunter2" not in str(failure.value)
    finally:
        strict.stop()


def test_ten_processes_set_up_one_schema_through_a_pooler(
    way: Way, python: Python, pgbouncer: Callable[[str], PgBouncer], new_database: Callable[[], str], postgres_url: str
) -> None:
    """Upgrades and `create_tables` of ten processes at once all succeed: their lock is their transaction's."""
    empty = new_database()
    url = way.url(pgbouncer(way.kind), make_url(empty).database).render_as_string(hide_password=False)
    crowd = python("-m", "tests.migrations.crowd", url, *["upgrade", "create"] * 5, cwd=ROOT, env=environment())

    assert (crowd.returncode, crowd.stdout, complaints(crowd.stderr)) == (0, "", [])
    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}


IN_TURN = (
    test_a_load_through_a_pooler_in_trouble,
    test_a_connection_that_dies_behind_the_pooler,
    test_forty_clients_on_three_server_connections,
    test_a_pooler_that_stays_paused,
    test_ten_processes_set_up_one_schema_through_a_pooler,
)
