"""The definitions: refreshed in the background, and kept on the disk."""

from __future__ import annotations

import logging
import os
import random
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from abacus_openfeature.decisions import Definitions
from abacus_openfeature.service import Refused, Service, Unavailable

log = logging.getLogger("abacus_openfeature")

PATH = "/api/definitions"


class Copy:
    """The last good definitions, from the service or else from the disk."""

    def __init__(
        self,
        service: Service,
        file: Path | None,
        seconds: float,
        notice: Callable[[bool, bool], None],
    ) -> None:
        self.definitions: Definitions | None = None
        self._service, self._file, self._seconds = service, file, seconds
        self._notice = notice
        self._is_open = False
        self._begin()
        copies.add(self)

    def _begin(self) -> None:
        """Begin without a thread, also in the child of a fork."""
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self.needs_thread = self._is_open

    def open(self) -> None:
        """Read what the disk has, ask the service once, and go on in the background."""
        self._is_open, self._ended = True, threading.Event()
        if self.definitions is None:
            self._read_file()
        try:
            self.refresh()
        finally:
            self.ensure_thread()

    def ensure_thread(self) -> None:
        """Start the thread if this process has none."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="abacus-definitions", daemon=True
                )
                self._thread.start()
            self.needs_thread = False

    def close(self) -> None:
        """End the thread; the definitions stay as they are."""
        self._is_open = self.needs_thread = False
        self._ended.set()
        with self._lock:
            self._thread = None

    def refresh(self) -> bool:
        """Ask for newer definitions; tell whether there are any.

        Raise Unavailable if there is no good answer. The last good ones stay.
        """
        known = self.definitions
        try:
            answer = self._service.ask("GET", PATH, tag=known.revision if known else "")
            if answer.status == 304:
                return False
            definitions = Definitions.read(answer.content, known)
        except Unavailable:
            raise
        except Refused as error:
            raise Unavailable(str(error)) from error
        except Exception as error:  # not JSON, or of a version that is not known
            raise Unavailable(f"The definitions cannot be read: {error!r}") from error
        self.definitions = definitions
        self._write_file(answer.content)
        return True

    def _run(self) -> None:
        wait, ended = self._seconds, self._ended
        while not ended.wait(wait * random.uniform(0.8, 1.2)):  # noqa: S311
            wait = self._seconds
            try:
                is_new = self.refresh()
                self._notice(True, is_new)
            except Unavailable as problem:
                self._service.warn(problem)
                wait = max(wait, problem.retry_after)
                self._notice(False, False)

    def _read_file(self) -> None:
        if self._file is None:
            return
        try:
            self.definitions = Definitions.read(self._file.read_bytes())
        except FileNotFoundError:
            return
        except Exception as error:  # damaged: the service has another one
            log.warning("%s is not used: %r", self._file, error)

    def _write_file(self, content: bytes) -> None:
        """Replace the copy on the disk in one step, so that it is always whole."""
        if self._file is None:
            return
        try:
            handle, name = tempfile.mkstemp(dir=self._file.parent, prefix=".abacus-")
            try:
                with open(handle, "wb") as file:  # noqa: PTH123
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self._file)
            except BaseException:
                Path(name).unlink()
                raise
        except OSError as error:
            log.warning("%s cannot be written: %s", self._file, error)


copies: weakref.WeakSet[Copy] = weakref.WeakSet()


def _begin_all() -> None:
    for copy in list(copies):
        copy._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_all)
