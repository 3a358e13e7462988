"""Files of archives: written whole or not at all, compressed where their name says so."""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

__all__ = ["opened_archive", "written_whole"]


@contextmanager
def written_whole(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write, which gets its name when the block ends well and is gone when it does not.

    A name that ends in .gz is compressed; the same bytes in give the same bytes out. Raises `ValueError` for a name
    that is taken, unless *force* says to put the new file in its place, and for one that cannot be written.
    """
    _require_free(path, force)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        file = part.open("xb")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with file:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as compressed:
                    yield cast("BinaryIO", compressed)
            else:
                yield file
            file.flush()
            os.fsync(file.fileno())
        _require_free(path, force)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def opened_archive(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read. Raises `ValueError` for one that is not there or cannot be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield file


def _require_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder")
    if path.exists() and not force:
        raise ValueError(f"{path} is there already; --force puts the new file in its place")
