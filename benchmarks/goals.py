"""The goals of issue 5, each with what this run measured. All are ratios within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.contenders import FULL, PLAIN, RAW, RAW_FULL, REDIS_ALWAYS, SDK, SDK_PER_TURN
from benchmarks.figures import Results
from benchmarks.parts.history import LIMIT, WHOLE
from benchmarks.parts.size import EMPTY, LISTS
from benchmarks.parts.sqlite import ADVANCED
from benchmarks.parts.storage import HOT_STEPS

__all__ = ["GOALS", "NOT_MEASURED", "Goal", "Verdict", "verdicts"]

NOT_MEASURED = "not measured in this run"

#: The sizes the goals speak of; a shorter run says how far it went instead.
_LARGE = 10_000_000
_SMALL = " (`make bench-scale` goes to 10⁷)"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, what it should be, and how to find it among the results."""

    figure: str
    limit: float
    at_least: bool  #: or else at most
    unit: str
    measure: Callable[[Results], tuple[float | None, str]]  #: the value, and how it came about


@dataclass(frozen=True, slots=True)
class Verdict:
    figure: str
    goal: str
    measured: str
    verdict: str  #: "reached", "missed by …" or "not measured in this run"
    how: str


def verdicts(results: Results) -> list[Verdict]:
    """Hold the results to every goal."""
    return [_judge(goal, results) for goal in GOALS]


def _judge(goal: Goal, results: Results) -> Verdict:
    value, how = goal.measure(results)
    wanted = f"{'≥' if goal.at_least else '≤'} {goal.limit:g}{goal.unit}"
    if value is None:
        return Verdict(goal.figure, wanted, "–", NOT_MEASURED, how)
    missed = (goal.limit - value if goal.at_least else value - goal.limit) / goal.limit
    reached = "reached so far" if how.endswith(_SMALL) else "reached"
    verdict = reached if missed <= 0 else f"missed by {max(missed, 0.01):.0%}"
    return Verdict(goal.figure, wanted, f"{value:.2f}{goal.unit}", verdict, how)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None or not below else above / below


def _worst(ratios: Iterable[float | None], *, at_least: bool) -> float | None:
    """Return the one furthest from the goal."""
    known = [ratio for ratio in ratios if ratio is not None]
    return None if not known else (min if at_least else max)(known)


def _trips(results: Results) -> tuple[float | None, str]:
    verbs = ("first append", "append", "latest 50", "pop", "clear")
    trips = [results.value("round trips", verb, FULL) for verb in verbs]
    return _worst(trips, at_least=False), "the most of five verbs, counted by a proxy"


def _turns(other: str) -> Callable[[Results], tuple[float | None, str]]:
    def measure(results: Results) -> tuple[float | None, str]:
        ours, theirs = (results.value("throughput", "turns", name, 16) for name in (FULL, other))
        return _ratio(ours, theirs), _beside(ours, theirs, "turns/s")

    return measure


def _delayed_turn(results: Results) -> tuple[float | None, str]:
    ours, theirs = (results.value("latency", "turn", name, 1) for name in (FULL, SDK))
    return _ratio(ours, theirs), _beside(ours, theirs, "ms")


def _of_raw(ours: str, raw: str) -> Callable[[Results], tuple[float | None, str]]:
    def measure(results: Results) -> tuple[float | None, str]:
        ratios = {
            sessions: _ratio(
                results.value("throughput", "turns", ours, sessions),
                results.value("throughput", "turns", raw, sessions),
            )
            for sessions in (1, 16, 64)
        }
        told = ", ".join(f"{each:.2f} at {sessions}" for sessions, each in ratios.items() if each is not None)
        return _worst(ratios.values(), at_least=True), told

    return measure


def _whole(results: Results) -> tuple[float | None, str]:
    ours, limit = (results.value("history", WHOLE, name, 10_000) for name in (FULL, LIMIT))
    return _ratio(ours, limit), _beside(ours, limit, "ms")


def _grown(results: Results) -> tuple[float | None, str]:
    """Compare the largest database of the run with an empty one."""
    largest = max((figure.at or 0 for figure in results.of("size")), default=0)
    if not largest:
        return None, ""
    ratios = {
        verb: _ratio(results.value("size", verb, FULL, largest), results.value("size", verb + EMPTY, FULL, largest))
        for verb in ("latest 50", "append")
    }
    told = ", ".join(f"{verb} {each:.2f}" for verb, each in ratios.items() if each is not None)
    return _worst(ratios.values(), at_least=False), f"{told}; {_as_far_as(largest)}"


def _pages(results: Results) -> tuple[float | None, str]:
    """Look at every size: a plan may be worse in the middle."""
    pages = [each for each in results.of("lists") if each.what in LISTS and each.what.startswith("sessions")]
    if not pages:
        return None, ""
    slowest, largest = max(pages, key=lambda each: each.value), max(each.at or 0 for each in pages)
    whole = {
        f"{each['what']} ({each['items']:,} items)"
        for each in results.plans
        if each["what"].startswith("sessions")
        and any(scan.startswith("Seq Scan on sessions") for scan in each["scans"])
    }
    scans = f"read whole by: {', '.join(sorted(whole))}" if whole else "no plan reads the table whole"
    return slowest.value, f"slowest: {slowest.what} at {slowest.at:,.0f} items; {scans}; {_as_far_as(largest)}"


def _hot(results: Results) -> tuple[float | None, str]:
    return results.value("storage", HOT_STEPS, FULL), "pg_stat_user_tables, 4 appends to each session"


def _contended(results: Results) -> tuple[float | None, str]:
    one, many = results.value("one session", "turns", FULL, 16), results.value("throughput", "turns", FULL, 16)
    return _ratio(one, many), _beside(one, many, "turns/s")


def _sqlite(ours: str) -> Callable[[Results], tuple[float | None, str]]:
    def measure(results: Results) -> tuple[float | None, str]:
        ratios = {
            sessions: _ratio(
                results.value("SQLite", "turns", ours, sessions), results.value("SQLite", "turns", ADVANCED, sessions)
            )
            for sessions in (1, 16)
        }
        told = ", ".join(f"{each:.2f} at {sessions}" for sessions, each in ratios.items() if each is not None)
        return _worst(ratios.values(), at_least=True), told

    return measure


def _redis(results: Results) -> tuple[float | None, str]:
    ours, theirs = (results.value("latency", "turn", name, 0) for name in (FULL, REDIS_ALWAYS))
    return _ratio(ours, theirs), _beside(ours, theirs, "ms")


def _beside(ours: float | None, theirs: float | None, unit: str) -> str:
    return "" if ours is None or theirs is None else f"{ours:,.3g} beside {theirs:,.3g} {unit}"


def _as_far_as(items: float) -> str:
    return f"up to {items:,.0f} items" + ("" if items >= _LARGE else _SMALL)


GOALS = (
    Goal("round trips of append, first append, latest, pop, clear, full record", 1, False, "", _trips),
    Goal("turns/s at 16 sessions, full record, against SQLAlchemySession, handles kept", 4, True, " ×", _turns(SDK)),
    Goal("the same, a handle per turn", 7, True, " ×", _turns(SDK_PER_TURN)),
    Goal("latency of a turn at 1 ms each way, against SQLAlchemySession", 0.25, False, " ×", _delayed_turn),
    Goal("turns/s against raw asyncpg, full record, at 1, 16, 64 sessions", 0.9, True, " ×", _of_raw(FULL, RAW_FULL)),
    Goal("the same, items only", 0.9, True, " ×", _of_raw(PLAIN, RAW)),
    Goal("whole history of 10,000 items against raw fetch and fastest exact decoder", 1.2, False, " ×", _whole),
    Goal("latest(50) and append on 10⁷ items against an empty table", 1.2, False, " ×", _grown),
    Goal("a page of 50 sessions out of 10⁶, any documented filter", 5, False, " ms", _pages),
    Goal("HOT updates of sessions, among appends that start no turn", 95, True, " %", _hot),
    Goal("16 writers on one session against 16 sessions", 0.5, True, " ×", _contended),
    Goal("SQLite: turns/s against AdvancedSQLiteSession, full record", 2, True, " ×", _sqlite(FULL)),
    Goal("the same, items only", 2, True, " ×", _sqlite(PLAIN)),
    Goal("latency of a turn against RedisSession (always), full record", 1.5, False, " ×", _redis),
)
