"""`sessions list | show | fork | end | delete`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

from agents_pg_session import SessionStore
from tests.cli.conftest import Cli
from tests.cli.writing import append
from tests.items import assistant, call, item, output, user

ACME = ("--tenant", "acme")


def ids(answer: Any) -> list[str]:
    return [each["session_id"] for each in answer.json["sessions"]]


def test_list_filters_by_what_it_is_asked(shop: Cli) -> None:
    """User, agent and status each narrow the list; without a tenant it is those of no tenant; all tenants is said."""
    listed = ("sessions", "list", "--json")

    assert ids(shop(*listed, *ACME)) == ["chat-1", "chat-2", "chat-4", "chat-3"]
    assert ids(shop(*listed, *ACME, "--user", "ada")) == ["chat-1", "chat-2"]
    assert ids(shop(*listed, *ACME, "--agent", "Billing")) == ["chat-3"]
    assert ids(shop(*listed, *ACME, "--status", "waiting")) == ["chat-2"]
    assert ids(shop(*listed)) == []
    assert len(ids(shop(*listed, "--all-tenants"))) == 4
    assert shop(*listed, "--all-tenants", *ACME).code == 2


def test_list_by_metadata(desk: Cli, tenant: str) -> None:
    """`key=value` and JSON both ask what the metadata contains."""
    asyncio.run(append(desk, "a", [user("hi")], tenant=tenant, metadata={"plan": "pro", "seats": 5}))
    asyncio.run(append(desk, "b", [user("hi")], tenant=tenant, metadata={"plan": "free", "seats": 5}))
    listed = ("sessions", "list", "--json", "--tenant", tenant, "--metadata")

    assert ids(desk(*listed, "plan=pro")) == ["a"]
    assert ids(desk(*listed, '{"seats": 5}')) == ["b", "a"]
    assert ids(desk(*listed, "seats=5", "--metadata", "plan=free")) == ["b"]
    assert desk(*listed, "plan").code == 2


def test_list_goes_on_behind_a_page(shop: Cli) -> None:
    """A page says how to go on: a person on standard error, a program in the document."""
    first = shop("sessions", "list", *ACME, "--limit", "3", "--json").json
    answer = shop("sessions", "list", *ACME, "--limit", "3")

    assert ids(shop("sessions", "list", *ACME, "--json", "--after", first["next"])) == ["chat-3"]
    assert answer.err == f"there are more: --after {first['next']}\n"
    assert shop("sessions", "list", *ACME, "--after", "nonsense").code == 2


def test_list_at_80_and_140_columns(shop: Cli) -> None:
    """No line is longer than the terminal, and each session is told in one."""
    for width in (80, 140):
        answer = shop("sessions", "list", *ACME, width=width)
        lines = [line.rstrip() for line in answer.out.splitlines()]

        assert max(map(len, lines)) <= width
        assert [line.split()[0] for line in lines[2:]] == ["chat-1", "chat-2", "chat-4", "chat-3"]


def test_show_tells_a_conversation(shop: Cli) -> None:
    """Who said what, the call with its arguments, how it ended and why, and what the model was told."""
    lines = [line.rstrip() for line in shop("sessions", "show", "chat-1", *ACME, width=140).out.splitlines()]
    text = "\n".join(lines)

    assert lines[0] == "chat-1  active"
    assert lines[1] == "tenant acme, user ada, agent Support"
    assert "2 turns, 8 items, 2 tool runs (1 failed), 5 events; 1,600 tokens in, 100 out" in lines
    assert [line.partition(" ─")[0] for line in lines if line.startswith("turn ")] == ["turn 1", "turn 2"]
    told = [line[10:] for line in lines if line[8:10] == "  "]
    second = told[[line.startswith("user") for line in told].index(True, 1) :]
    assert second[0] == "user     And A-0000?"
    assert second[1] == 'Support  track_parcel(order_id="A-0000")'
    assert second[2].startswith("         → failed after ")
    assert second[2].endswith("the carrier does not know A-0000")
    assert second[3].startswith("         An error occurred while running the tool. Please try again.")
    assert second[4] == "Support  The carrier does not know it."
    assert "completed, 2 requests, 800 tokens in, 50 out, model " in second[5]
    assert text.count("A-1042: in Lyon") == 1


def test_show_tells_events_in_their_place(shop: Cli) -> None:
    """A hand-off stands between the two agents, an approval behind its call, and a run that never ended is running."""
    handoff = shop("sessions", "show", "chat-3", *ACME).out
    waiting = shop("sessions", "show", "chat-2", *ACME).out
    lost = shop("sessions", "show", "chat-4", *ACME).out

    order = (
        "Support  transfer_to_billing()",
        "Support  hands over to Billing",
        "Billing  find_invoice(",
        "Billing  It was 249",
    )
    places = [handoff.index(each) for each in order]
    assert places == sorted(places)
    assert 'asks for approval of refund(order_id="A-1042", amount=249)' in waiting
    assert "→ running: no output yet" in waiting
    assert "run started" not in waiting
    assert "running, last heard of" in lost
    assert "run started" in shop("sessions", "show", "chat-4", *ACME, "--full").out


def test_show_fits_the_terminal(shop: Cli) -> None:
    """At 80 columns nothing is wider, and a long text is wrapped under itself."""
    for width in (80, 140):
        answer = shop("sessions", "show", "chat-1", *ACME, width=width)

        assert max(len(line) for line in answer.out.splitlines()) <= width


def test_show_as_json(shop: Cli) -> None:
    """One document: the session, its turns with items, runs and events, and the tool runs."""
    told = shop("sessions", "show", "chat-1", *ACME, "--json").json

    assert told["session"]["turn_count"] == 2
    assert [turn["turn"] for turn in told["turns"]] == [1, 2]
    assert [len(turn["items"]) for turn in told["turns"]] == [4, 4]
    assert [each["kind"] for each in told["turns"][1]["events"]] == ["run_started", "tool_failed", "run_ended"]
    assert {each["position"]: each["status"] for each in told["tool_runs"]} == {2: "succeeded", 6: "failed"}


def test_show_only_the_newest_turns(desk: Cli, tenant: str) -> None:
    """`--turns N` shows the last N with their events and says how many came before; 0 shows all."""
    for number in range(5):
        asyncio.run(append(desk, "s", [user(f"q{number}"), call("c"), output("c"), assistant("a")], tenant=tenant))
    show = ("sessions", "show", "s", "--tenant", tenant)
    answer = desk(*show, "--turns", "2")
    told = desk(*show, "--turns", "2", "--json").json

    assert "3 earlier turns are not shown: --turns 0 shows all" in answer.out
    assert [each for each in ("q0", "q1", "q2", "q3", "q4") if each in answer.out] == ["q3", "q4"]
    assert [len(turn["events"]) for turn in told["turns"]] == [1, 1]
    assert len(told["tool_runs"]) == 2
    assert "q0" in desk(*show, "--turns", "0").out


def test_show_cuts_long_texts_unless_told(file: Cli) -> None:
    """A text of many lines or characters is cut with its rest counted; --full shows it whole."""
    many = "\n".join(f"line {number}" for number in range(100))
    asyncio.run(append(file, "s", [user("x" * 2000), assistant(many)]))
    short, full = file("sessions", "show", "s").out, file("sessions", "show", "s", "--full").out

    assert short.count("x") < 700
    assert "1,360 more characters, --full shows them" in short.replace("\n", " ").replace("  ", "")
    assert "line 7" in short
    assert "line 8" not in short
    assert "line 99" in full
    assert sum(line.count("x") for line in full.splitlines()) == 2000


def test_show_of_items_of_every_kind(file: Cli) -> None:
    """Images, refusals, reasoning, hosted tools, encrypted items and what nobody knows are all told in some words."""
    asyncio.run(
        append(
            file,
            "s",
            [
                item(role="user", content=[{"type": "input_text", "text": "see"}, {"type": "input_image", "x": 1}]),
                item(type="reasoning", id="r", summary=[{"type": "summary_text", "text": "hm"}]),
                item(type="message", role="assistant", content=[{"type": "refusal", "refusal": "no"}]),
                item(type="web_search_call", id="w", status="completed", action={"query": "x"}),
                item(__enc__=1, v="secret"),
                item(type="never_seen", a=1),
                item(a="b"),
            ],
        )
    )
    shown = file("sessions", "show", "s").out

    for told in (
        "see[image]",
        "(thinks) hm",
        "no",
        "web_search",
        "(encrypted)",
        'never_seen {"a": 1}',
        'item {"a": "b"}',
    ):
        assert told in shown
    assert "secret" not in shown


def test_show_after_a_clear(file: Cli) -> None:
    """A session without items tells what happened in it."""

    async def clear() -> None:
        await append(file, "s", [user("hi")])
        async with SessionStore.open(str(file.url)) as store:
            await store.session("s").clear_session()

    asyncio.run(clear())

    assert "cleared: 1 items taken out" in file("sessions", "show", "s").out


def test_show_of_an_expired_session_is_not_found(file: Cli) -> None:
    """What has expired is not shown any more, though nobody has purged it yet."""
    asyncio.run(append(file, "s", [user("hi")], expires_after=timedelta(microseconds=1)))

    assert file("sessions", "show", "s").code == 1


def test_fork_end_and_delete(desk: Cli, tenant: str) -> None:
    """Each does what it says and says what it did; what is not there is exit code 1, a taken id 4."""
    asyncio.run(append(desk, "s", [user("q1"), assistant("a1"), user("q2"), assistant("a2")], tenant=tenant))
    whose = ("--tenant", tenant)

    assert desk("sessions", "fork", "s", "t", *whose, "--before-turn", "2").out == "t is a copy of s with 1 turn\n"
    assert desk("sessions", "fork", "s", "t", *whose).code == 4
    assert desk("sessions", "fork", "nobody", "u", *whose).code == 1
    assert (
        desk("sessions", "end", "t", *whose, "--status", "resolved", "--json").json["session"]["status"] == "resolved"
    )
    assert desk("sessions", "end", "nobody", *whose).code == 1
    assert desk("sessions", "delete", "t", *whose, "--yes").out == "t is erased\n"
    assert desk("sessions", "delete", "t", *whose, "--yes").code == 1
    assert ids(desk("sessions", "list", *whose, "--json")) == ["s"]


def test_delete_asks_first(file: Cli) -> None:
    """Where nobody can be asked it refuses, naming the option, and nothing is erased."""
    asyncio.run(append(file, "s", [user("hi")]))
    answer = file("sessions", "delete", "s")

    assert answer.code == 2
    assert "1 item," in answer.err
    assert "--yes" in answer.err
    assert file("sessions", "show", "s").code == 0


def test_names_are_not_broken_in_a_narrow_terminal(file: Cli) -> None:
    """Where ids do not fit beside each other they stand below each other, whole, so that they can be copied."""
    names = [str(uuid4()) for _ in range(3)]
    asyncio.run(append(file, names[0], [user("hi")], tenant=names[1], user_id=names[2], agent="Support agent"))
    told = file("sessions", "list", "--all-tenants", width=80).out

    assert all(name in told for name in names)
    assert max(map(len, told.splitlines())) <= 80
    wide = file("sessions", "list", "--all-tenants", width=200).out
    assert any(all(name in line for name in names) for line in wide.splitlines())


def test_an_empty_list_says_so(file: Cli) -> None:
    """Whoever forgot --tenant is told that only sessions of no tenant were looked at; --json stays a document."""
    for command in (("sessions", "list"), ("waiting",), ("tools", "failed")):
        answer = file(*command)

        assert (answer.code, answer.out) == (0, "")
        assert "of no tenant: --tenant or --all-tenants" in answer.err
        assert "of tenant acme" in file(*command, "--tenant", "acme").err
    assert file("sessions", "list", "--json").json == {"sessions": [], "next": None}
