"""Texts of others as our columns can hold them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_pg_session.texts import MAX_NAME_BYTES, MAX_TEXT, stored_name, stored_text

ANY = st.text(st.characters(codec=None), max_size=40)


@given(text=ANY, times=st.sampled_from([1, 20, 200]))
def test_any_text_can_be_stored(text: str, times: int) -> None:
    """No NUL, no lone surrogate, not endlessly long; everything else stays as it is."""
    stored = stored_text(text * times)

    fine = "\0" not in text and text.encode("utf-8", "replace").decode() == text
    assert "\0" not in stored
    assert stored.encode().decode() == stored
    assert len(stored) == min(len(text) * times, MAX_TEXT)
    assert not fine or stored == (text * times)[:MAX_TEXT]


@given(text=ANY, times=st.sampled_from([1, 5, 20, 200]))
def test_any_name_can_be_stored(text: str, times: int) -> None:
    """A name is as much of its text as an index can hold, and never half a character."""
    name = stored_name(text * times)

    whole = stored_text(text * times)
    assert whole.startswith(name)
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert name == whole or len(whole[: len(name) + 1].encode()) > MAX_NAME_BYTES


@pytest.mark.parametrize("letter", ["a", "é", "€", "🎉"])
def test_the_longest_name_is_kept(letter: str) -> None:
    """A name of exactly as many bytes as there is room for loses nothing."""
    name = letter * (MAX_NAME_BYTES // len(letter.encode()))

    assert stored_name(name) == name
    assert stored_name(name + letter) == name
