"""Arguments nobody should pass: an error of ours that names them and wrote nothing, or the right answer."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.hostile.law import Bench, Refused
from tests.hostile.verbs import CALLS, Opened, make

pytestmark = pytest.mark.timeout(900)  # with --thorough


def test_every_verb_with_arguments_of_every_kind(bench: Bench) -> None:
    """Whatever a verb is given, it answers what is right or refuses it by name, and what was refused wrote nothing."""

    async def check(calls: list[Any]) -> None:
        desk = await Opened.at(bench.store)
        before = await desk.state()
        for verb, given in calls:
            answer = await bench.judged(lambda verb=verb, given=given: make(desk, verb.name, given), *given)  # type: ignore[misc]
            if isinstance(answer, Refused):
                assert await desk.state() == before, f"{verb.name} was refused and wrote something"
                continue
            if inspect.isawaitable(right := verb.right(desk, answer, given)):
                await right
            before = await desk.state() if verb.writes else before
            assert await desk.state() == before, f"{verb.name} only reads"

    batches = st.lists(CALLS, min_size=16, max_size=16)
    bench.explore(batches, check, few=20, many=2400 if bench.backend == "sqlite" else 700)
