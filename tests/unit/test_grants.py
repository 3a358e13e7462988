"""The text of the grants: commented, quoted, and refused where it would give rights to somebody else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from agents_pg_session.grants import grants


def test_every_statement_says_what_it_is_for() -> None:
    """Above each paragraph but the transaction's two words stands a comment."""
    paragraphs = grants("agents", "app", "deployer", "oncall").strip().split("\n\n")

    assert [each for each in paragraphs if not each.startswith("--")] == ["BEGIN;", "COMMIT;"]
    assert all(len(line) <= 120 for each in paragraphs for line in each.splitlines())


BAD_NAMES: list[Any] = ["", "nul\0", "x" * 64, "ä" * 32, "\ud800", "public", "none", 7]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_roles_are_refused(name: Any) -> None:
    """A name that PostgreSQL would cut, or take for everybody, raises instead of giving rights to somebody else."""
    makers: list[Callable[[], str]] = [
        partial(grants, "agents", name),
        partial(grants, "agents", "app", name),
        partial(grants, "agents", "app", None, name),
    ]
    for make, what in zip(makers, ("runtime", "migrator", "read_only"), strict=True):
        with pytest.raises(ValueError, match=f"^{what} (must be a name|cannot be)"):
            make()


@pytest.mark.parametrize("roles", [("app", "app"), ("app", None, "app"), ("app", "boss", "boss")])
def test_one_role_cannot_be_two(roles: tuple[str, ...]) -> None:
    """The text for the read-only role would take away what the text for the application gave."""
    with pytest.raises(ValueError, match="must be different roles"):
        grants("agents", *roles)
