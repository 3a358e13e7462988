"""Which promises a session keeps: all of them asked, one after another, and the answers as a table."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agents_pg_session.testing.promises import PROMISES, Broken, NotApplicable, Promise, Subject

__all__ = ["Answer", "Report", "survey", "table"]

Outcome = Literal["kept", "broken", "not applicable"]

#: Why a promise is broken, in as many characters.
_WHY = 140

#: What Python shows of tasks and futures inside a message: paths of this machine, and nothing to learn from.
_A_REPR = re.compile(r"<(?:[^<>]|<[^<>]*>)*>")


@dataclass(frozen=True)
class Answer:
    """What became of one promise, and the first line of why."""

    promise: Promise
    outcome: Outcome
    why: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.outcome}: {self.why}" if self.why else self.outcome


@dataclass(frozen=True)
class Report:
    """The answers of one survey. `print(report)` is a table for a terminal, `report.markdown()` one for a page."""

    subject: Subject
    answers: tuple[Answer, ...]

    def of(self, outcome: Outcome) -> list[Promise]:
        """The promises that came out as *outcome*."""
        return [answer.promise for answer in self.answers if answer.outcome == outcome]

    @property
    def kept(self) -> list[Promise]:
        return self.of("kept")

    @property
    def broken(self) -> list[Promise]:
        return self.of("broken")

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        marks: dict[Outcome, str] = {"kept": "kept", "broken": "BROKEN", "not applicable": "-"}
        width = max((len(answer.promise.name) for answer in self.answers), default=0)
        group = ""
        for answer in self.answers:
            if answer.promise.group != group:
                group = answer.promise.group
                yield f"\n{group}"
            line = f"  {answer.promise.name:{width}}  {marks[answer.outcome]:6}  {answer.why}"
            yield line.rstrip()
        yield ""
        yield (
            f"{self.subject.name}: {len(self.kept)} promises kept, {len(self.broken)} broken, "
            f"{len(self.of('not applicable'))} not applicable"
        )

    def markdown(self) -> str:
        """Return a Markdown table of this report alone; `table` puts several side by side."""
        return table({self.subject.name: self})


async def survey(
    subject: Subject,
    promises: Sequence[Promise] = (),
    *,
    rounds: int = 3,
    tell: Callable[[Answer], None] = lambda answer: None,
) -> Report:
    """Ask *subject* for all *promises* (every one, if not told which) and return what it keeps.

    What may be kept by luck, because it depends on who comes first, is asked *rounds* times and is kept only if it was
    kept each time. *tell* hears each answer as it comes.
    """
    answers = []
    for promise in promises or PROMISES:
        answers.append(await _answer(promise, subject, rounds if promise.races else 1))
        tell(answers[-1])
    return Report(subject, tuple(answers))


async def _answer(promise: Promise, subject: Subject, rounds: int) -> Answer:
    failures, started = [], time.monotonic()
    for _ in range(rounds):
        try:
            await promise.check(subject)
        except NotApplicable as reason:
            return Answer(promise, "not applicable", str(reason), time.monotonic() - started)
        except Exception as error:
            failures.append(_first_line(error))
    seconds = time.monotonic() - started
    if not failures:
        return Answer(promise, "kept", "", seconds)
    often = f"{len(failures)} of {rounds} times: " if rounds > 1 else ""
    return Answer(promise, "broken", often + failures[0], seconds)


def _first_line(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, Broken):  # what the session itself raised
        text = _A_REPR.sub("<…>", f"{type(error).__name__}: {text}" if text else type(error).__name__)
    return text if len(text) <= _WHY else f"{text[: _WHY - 1]}…"


def table(reports: Mapping[str, Report]) -> str:
    """Return a Markdown table with a row per promise and a column per report."""
    lines = [f"| promise | {' | '.join(reports)} |", f"|---|{'---|' * len(reports)}"]
    marks: dict[Outcome, str] = {"kept": "kept", "broken": "**broken**", "not applicable": "–"}
    group = ""
    for answers in zip(*(report.answers for report in reports.values()), strict=True):
        promise = answers[0].promise
        if promise.group != group:
            group = promise.group
            lines.append(f"| **{group}** |{' |' * len(reports)}")
        cells = [f"{marks[each.outcome]}{f': {_escaped(each.why)}' if each.why else ''}" for each in answers]
        lines.append(f"| `{promise.name}` {_escaped(promise.sentence)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
