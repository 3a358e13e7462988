"""What `make faults` asks of both drivers, in the suite asked of one: of the other one for the next case."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, product

import pytest

__all__ = ["DRIVERS", "in_turn"]

DRIVERS = ("asyncpg", "psycopg")


def in_turn(
    metafunc: pytest.Metafunc, over: str, names: str, cases: Mapping[str, tuple[object, ...]], *, fixture: bool = True
) -> None:
    """Give *over* each driver for each of *cases* with `--thorough`; otherwise the drivers take turns.

    *names* are those of a case's values. *over* is a fixture with a driver as its parameter, or else an argument.
    """
    every = metafunc.config.option.thorough
    pairs = list(product(DRIVERS, cases)) if every else list(zip(cycle(DRIVERS), cases, strict=False))
    metafunc.parametrize(
        [over, *names.split()],
        [(driver, *cases[case]) for driver, case in pairs],
        ids=[f"{driver}-{case}" if case else driver for driver, case in pairs],
        indirect=[over] if fixture else False,
    )
