"""What a disk may hold after a power cut, from a log of what was asked of it.

`strace` logs every write, truncation, removal and fsync of the service, and what it
sent to its callers. At a cut, the disk holds what an fsync that had returned covers;
of the rest it may hold nothing, all, what came first, or any sectors of 512 bytes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

STRACE = (
    *("strace", "-D", "-f", "--seccomp-bpf", "-y", "-xx", "-s", "200000"),
    *("-e", "trace=openat,pwrite64,ftruncate,unlink,fsync,fdatasync,sendto"),
)
MODELS = ("nothing", "first", "sectors", "all")
HEX = re.compile(r"(?:\\x[0-9a-f]{2})+")
# strace pads short process ids to five columns.
CALL = re.compile(r"(\d+) +(\w+)\((.*)")
RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>")
SEATED = re.compile(rb'"userId": "([^"]+)", "enrolled": true')
SECTOR = 512


class File:
    """A file with what is surely on the disk; its name may be another's later."""

    def __init__(self, held: bytes = b"") -> None:
        self.held = bytearray(held)


class Write:
    def __init__(self, file: File, offset: int, data: bytes) -> None:
        self.file, self.offset, self.data = file, offset, data

    def apply(self, disk: Disk) -> None:
        held = disk.contents[self.file]
        held.extend(bytes(max(0, self.offset - len(held))))
        held[self.offset : self.offset + len(self.data)] = self.data

    def sectors(self) -> Iterator[Write]:
        start = self.offset
        while start < self.offset + len(self.data):
            end = min(start // SECTOR * SECTOR + SECTOR, self.offset + len(self.data))
            part = self.data[start - self.offset : end - self.offset]
            yield Write(self.file, start, part)
            start = end


class Truncation:
    def __init__(self, file: File, size: int) -> None:
        self.file, self.size = file, size

    def apply(self, disk: Disk) -> None:
        held = disk.contents[self.file]
        held.extend(bytes(max(0, self.size - len(held))))
        del held[self.size :]


class Name:
    """A name given to a file, or taken away; the directory's fsync covers it."""

    file = None

    def __init__(self, name: str, named: File | None) -> None:
        self.name, self.named = name, named

    def apply(self, disk: Disk) -> None:
        if self.named is None:
            disk.names.pop(self.name, None)
        else:
            disk.names[self.name] = self.named


Change = Write | Truncation | Name


class Disk:
    """The names and the contents that are on the disk for sure."""

    def __init__(self, files: dict[str, File]) -> None:
        self.names = dict(files)
        self.contents = {file: file.held for file in files.values()}

    def copy(self) -> Disk:
        made = Disk({})
        made.names = dict(self.names)
        made.contents = {file: bytearray(held) for file, held in self.contents.items()}
        return made

    def write_to(self, folder: Path) -> None:
        for name, file in self.names.items():
            (folder / name).write_bytes(self.contents[file])


class Replay:
    """The log, event by event: what is sure, what is pending, what was answered."""

    def __init__(self, log: Path, folder: Path, files: dict[str, bytes]) -> None:
        self.log, self.folder = log, str(folder)
        named = {name: File(held) for name, held in files.items()}
        self.disk = Disk(named)
        self.names = dict(named)  # as the processes see them
        self.pending: list[Change] = []
        self.answered: set[str] = set()
        self._syncing: dict[str, tuple[str, list[Change]]] = {}

    def events(self) -> Iterator[None]:
        """Go on by one event at each step."""
        with self.log.open() as lines:
            for line in lines:
                if self._read(line):
                    yield

    def _read(self, line: str) -> bool:
        if resumed := RESUMED.match(line):
            if resumed[2] not in ("fsync", "fdatasync"):
                return False
            return self._synced(resumed[1], "= 0" in line)
        call = CALL.match(line)
        if call is None:
            return False
        pid, name, rest = call.groups()
        if name == "sendto":
            sent = b"".join(_bytes(one) for one in HEX.findall(rest)[1:])
            self.answered |= {user.decode() for user in SEATED.findall(sent)}
            return True
        path = _bytes(HEX.search(rest)[0]).decode() if HEX.search(rest) else ""
        if name == "openat":
            return False
        if name in ("fsync", "fdatasync"):
            return self._sync(pid, path, "unfinished" not in line)
        if not path.startswith(f"{self.folder}/abacus.db") or path.endswith("-shm"):
            return False
        short = path.rpartition("/")[2]
        if name == "unlink":
            if self.names.pop(short, None):
                self.pending.append(Name(short, None))
            return True
        file = self._named(short)
        numbers = [int(one) for one in re.findall(r", (\d+)", HEX.sub("", rest))]
        if name == "ftruncate":
            self.pending.append(Truncation(file, numbers[0]))
        else:
            data = _bytes(HEX.findall(rest)[1])
            assert len(data) == numbers[0], line[-80:]
            self.pending.append(Write(file, numbers[1], data))
        return True

    def _named(self, short: str) -> File:
        """Return the file of that name; one made after a removal is another."""
        if short not in self.names:
            file = self.names[short] = File()
            self.disk.contents[file] = file.held
            self.pending.append(Name(short, file))
        return self.names[short]

    def _sync(self, pid: str, path: str, returned: bool) -> bool:
        if path == self.folder:
            covered = [one for one in self.pending if isinstance(one, Name)]
        else:
            file = self.names.get(path.rpartition("/")[2])
            if file is None or not path.startswith(self.folder):
                return False
            covered = [one for one in self.pending if one.file is file]
        self._syncing[pid] = (path, covered)
        return self._synced(pid, True) if returned else True

    def _synced(self, pid: str, good: bool) -> bool:
        _, covered = self._syncing.pop(pid, ("", []))
        if good:
            for change in covered:
                change.apply(self.disk)
            gone = set(map(id, covered))
            self.pending = [one for one in self.pending if id(one) not in gone]
        return True

    def cut(self, model: str, choice: random.Random) -> Disk:
        """Return what the disk may hold if the power fails now."""
        disk = self.disk.copy()
        for change in self._kept(model, choice):
            change.apply(disk)
        return disk

    def _kept(self, model: str, choice: random.Random) -> list[Change]:
        if model == "nothing":
            return []
        if model == "all":
            return self.pending
        if model == "first":
            return self.pending[: choice.randint(0, len(self.pending))]
        parts: list[Change] = []
        for change in self.pending:
            if isinstance(change, Write):
                parts += change.sectors()
            else:
                parts.append(change)
        return [part for part in parts if choice.random() < 0.5]


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
