"""The format of an archive: JSON Lines, whole sessions, each closed with its counts and a checksum (docs/archive.md).

What is written here and read back says nothing of the machine or the moment: the same sessions give the same bytes.
Reading is strict, and by whole sessions: nobody is handed one that was cut off or changed on the way.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO, NoReturn

from agents_pg_session.errors import SessionError
from agents_pg_session.labels import checked_id, checked_text
from agents_pg_session.operations.archive_lines import prefix_of, table_of
from agents_pg_session.operations.shapes import PARTS, SESSIONS, shapes
from agents_pg_session.statements import Key
from agents_pg_session.texts import shown

__all__ = ["ArchiveReader", "ArchiveWriter", "BadArchive", "Header", "Parcel", "Told", "open_archive"]

FORMAT = "agents-pg-session archive"
VERSION = 1

#: Bytes of a session that are kept in memory; what is longer lies in a temporary file meanwhile.
IN_MEMORY = 4 << 20

#: Bytes a line may have: what PostgreSQL holds in one value.
LONGEST_LINE = 1 << 30

_FIRST_LINE = 1 << 20
_GZIP = b"\x1f\x8b"
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)


class BadArchive(SessionError):
    """A file that is no archive, or is cut off, damaged or changed; the message says which line and what is wrong."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line: which revision's columns follow, and what was asked for."""

    revision: str
    columns: Mapping[str, frozenset[str]]
    asked: Mapping[str, Any]

    @classmethod
    def of_ours(cls, revision: str, asked: Mapping[str, Any]) -> Header:
        return cls(revision, {name: shape.names for name, shape in shapes().items()}, asked)

    def line(self) -> str:
        columns = {
            name: [each.name for each in shape.fields if each.name in self.columns[name]]
            for name, shape in shapes().items()
        }
        head = {"format": FORMAT, "version": VERSION, "revision": self.revision, "asked": self.asked}
        return _compact({**head, "columns": columns})


class Told:
    """One session's lines: in memory while they are few, else in a temporary file. Close it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.size = 0
        self._file: IO[bytes] = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def add(self, lines: bytes, **counts: int) -> None:
        """Add whole lines, and how many of which table they are."""
        self.counts.update(counts)
        self.size += len(lines)
        self._digest.update(lines)
        try:
            self._file.write(lines)
        except OSError as error:
            raise SessionError(f"no room for a session's lines in the temporary folder: {error}") from error

    def again(self) -> None:
        """Forget everything, to begin anew."""
        self._file.seek(0)
        self._file.truncate()
        self.counts, self.size, self._digest = Counter(), 0, hashlib.sha256()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, each with its end; from the first one, however often."""
        self._file.seek(0)
        # Not `yield from`: that would close the file of a reader that has seen enough.
        for line in self._file:  # noqa: UP028
            yield line

    def close(self) -> None:
        self._file.close()


class ArchiveWriter:
    """Writes an archive to a binary file."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.counts: Counter[str] = Counter({SESSIONS: 0, **dict.fromkeys(PARTS, 0)})
        self.size = 0
        self._write(f"{header.line()}\n".encode())

    def add(self, key: Key, told: Told) -> None:
        """Add a session whose lines are complete, and close it."""
        for line in told.lines():
            self._write(line)
        closing_line = {"end": "session", **key._asdict(), **{name: told.counts[name] for name in PARTS}}
        self._write(f"{_compact({**closing_line, 'sha256': told.sha256})}\n".encode())
        self.counts.update({SESSIONS: 1, **{name: told.counts[name] for name in PARTS}})

    def finish(self) -> str:
        """Write the last line; return the checksum of all lines before it."""
        checksum = self._digest.hexdigest()
        self._write(f"{_compact({'end': 'archive', **self.counts, 'sha256': checksum})}\n".encode())
        return checksum

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One session out of an archive, complete and unchanged. Close it."""

    key: Key
    first_line: int
    told: Told = field(repr=False)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its number in the file, the session's own row first."""
        for number, line in enumerate(self.told.lines(), self.first_line):
            yield number, line[:-1].decode()

    def close(self) -> None:
        self.told.close()


class ArchiveReader:
    """Reads an archive from a binary file, session by session."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._number = 0
        self._counts: Counter[str] = Counter({SESSIONS: 0, **dict.fromkeys(PARTS, 0)})
        self._header: Header | None = None

    @property
    def header(self) -> Header:
        """The first line. Raises `BadArchive` for a file that is none of ours."""
        if self._header is None:
            self._header = self._read_header()
        return self._header

    def parcels(self) -> Iterator[Parcel]:
        """Yield each session once all of it was read and found unchanged.

        Raises `BadArchive` at the first thing that is wrong, in the end for what lies between the sessions too.
        """
        self._header = self.header
        last: Key | None = None
        while True:
            before = self._digest.copy()
            line = self._line("the last line is missing, so the file was cut off")
            if line.startswith(b'{"table":"'):
                parcel = self._parcel(line, last)
                last = parcel.key
                yield parcel
                continue
            end = self._parsed(line)
            if end.get("end") != "archive":
                self._refuse("it begins no session, and does not end the archive")
            self._check_end(end, before.hexdigest())
            return

    def _read_header(self) -> Header:
        not_ours = "this is no archive of agents-pg-session"
        line = self._line(f"{not_ours}: the file is empty", longest=_FIRST_LINE)
        try:
            head = json.loads(line)
        except (ValueError, RecursionError):
            head = None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            self._refuse(not_ours)
        if head.get("version") != VERSION:
            self._refuse(f"its format has version {shown(head.get('version'))}; this version of the package reads 1")
        columns = head.get("columns")
        if not isinstance(columns, dict) or {*columns} != {*shapes()}:
            self._refuse("its first line does not name the columns of each table")
        told = {name: frozenset(map(str, columns[name])) for name in columns}
        revision = str(head.get("revision"))
        for name, shape in shapes().items():
            if strange := sorted(told[name] - shape.names):
                self._refuse(
                    f"it was written at revision {revision} and tells the column {strange[0]!r} of {name}, which this "
                    "version of the package does not know; upgrade agents-pg-session and the database"
                )
        asked = head.get("asked")
        return Header(revision, told, asked if isinstance(asked, dict) else {})

    def _parcel(self, line: bytes, last: Key | None) -> Parcel:
        """Read one session to its closing line."""
        key, first_line = self._key_of(line), self._number
        if last is not None and key <= last:
            what = "is there a second time" if key == last else f"comes after {last.session_id!r}, but sorts before it"
            self._refuse(f"session {key.session_id!r} {what}: sessions stand in the order of tenant and id, once each")
        starts = {f"{prefix_of(name, key)}".encode(): name for name in PARTS}
        told = Told()
        try:
            told.add(line)
            while True:
                line = self._line(f"the file ends in the middle of session {key.session_id!r}: it was cut off")
                table = next((name for start, name in starts.items() if line.startswith(start)), None)
                if table is None:
                    break
                told.add(line, **{table: 1})
            self._check_session(line, key, told, first_line)
        except BaseException:
            told.close()
            raise
        self._counts.update({SESSIONS: 1, **told.counts})
        return Parcel(key, first_line, told)

    def _key_of(self, line: bytes) -> Key:
        head = self._parsed(line)
        key = head.get("tenant_id"), head.get("session_id")
        if head.get("table") != SESSIONS or not (isinstance(key[0], str) and isinstance(key[1], str)):
            self._refuse("a session begins with the line of its row in sessions")
        try:
            return Key(checked_id("tenant_id", key[0]), checked_text("session_id", key[1]))
        except ValueError as error:
            self._refuse(str(error))

    def _check_session(self, line: bytes, key: Key, told: Told, first_line: int) -> None:
        what = f"session {key.session_id!r}"
        if table_of(line.decode("utf-8", "replace")) is not None:
            self._refuse(f"it is no line of {what}, which is not closed yet")
        end = self._parsed(line)
        if (end.get("end"), end.get("tenant_id"), end.get("session_id")) != ("session", *key):
            self._refuse(f"it is no line of {what}, and does not close it")
        if end.get("sha256") != told.sha256 or any(end.get(name) != told.counts[name] for name in PARTS):
            self._refuse_changed(what, told, first_line)

    def _refuse_changed(self, what: str, told: Told, first_line: int) -> NoReturn:
        """Name the line, where one tells by itself that something is wrong with it."""
        for number, line in enumerate(told.lines(), first_line):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                raise BadArchive(f"line {number}: it is no JSON; {what} was changed or damaged") from None
        self._refuse(f"{what} (from line {first_line} on) is not what was exported: its checksum or counts differ")

    def _check_end(self, end: Mapping[str, Any], checksum: str) -> None:
        if end.get("sha256") != checksum or any(end.get(name) != count for name, count in self._counts.items()):
            self._refuse("the archive's checksum or totals differ: a session was added, changed or taken out")
        if self._read(1):
            self._refuse("something follows the last line")

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._refuse("it is no JSON object")
        return value

    def _line(self, at_end: str, longest: int = LONGEST_LINE) -> bytes:
        """Return the next line, taken into the checksum."""
        line = self._read(longest)
        self._number += 1
        if not line:
            self._refuse(at_end)
        if not line.endswith(b"\n"):
            if self._number == 1:
                self._refuse("this is no archive of agents-pg-session")
            self._refuse("it has no end: the file was cut off" if len(line) < longest else "it is too long")
        self._digest.update(line)
        return line

    def _read(self, longest: int) -> bytes:
        try:
            return self._file.readline(longest)
        except _DAMAGED as error:
            raise BadArchive(f"line {self._number + 1}: the compressed data is cut off or damaged ({error})") from error

    def _refuse(self, why: str) -> NoReturn:
        raise BadArchive(f"line {self._number}: {why}")


def open_archive(file: BinaryIO) -> BinaryIO:
    """Return what to read the lines from: *file* itself, or what is compressed in it."""
    if isinstance(file, BufferedReader):
        start = file.peek(2)[:2]
    else:
        place = file.tell()
        start = file.read(2)
        file.seek(place)
    return gzip.GzipFile(fileobj=file, mode="rb") if start == _GZIP else file  # type: ignore[return-value]


def _compact(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
