"""gunicorn's settings, each with its reason; command-line flags override them."""

import fcntl
import gc
import importlib
import os
import re
import signal
import stat
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import peewee
from gunicorn.glogging import Logger

from models import TABLES
from storage import engine, factory, schema
from web import settings
from web.keys import WeakSecret, keys_are_ready
from web.worker import Worker, free, free_place


class DiscreetLogger(Logger):
    """gunicorn's logger, without text from a client, such as a request's path."""

    def warning(self, msg, *args, **options):
        if msg.startswith("Invalid request"):
            msg = "Refused what is no HTTP."
        super().warning(msg, *args, **options)

    def exception(self, msg, *args, **options):
        if not msg.startswith("Error handling request"):
            return super().exception(msg, *args, **options)
        kind, _, trace = sys.exc_info()
        lines = "".join(traceback.format_tb(trace))
        return self.error("Error handling a request: %s\n%s", kind, lines)


bind = "127.0.0.1:8000"
# A thread worker: a sync one never exits after its master was killed.
worker_class = Worker
workers = 2
threads = 32  # at most 28 wait for a write; the other four answer health checks
timeout = 30
graceful_timeout = 30
keepalive = 15
limit_request_line = 8190
umask = 0o077  # for gunicorn's own files; on_starting sets the process's umask
logger_class = DiscreetLogger
accesslog = None  # the service logs each request itself, without user ids
control_socket_disable = True
# Never preload: a database handle that is open at a fork loses commits. Each worker
# makes an app of its own, from modules that on_starting has imported for all.
preload_app = False

CAN_PIN = hasattr(os, "sched_setaffinity")  # not on macOS

COUNTS = "abacus-metrics-"  # the prefix of a metrics folder that a master creates
# prometheus_client's names of the workers' files; no other file is ever removed.
COUNT_FILE = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[0-9]+\.db")


def on_starting(server):
    """Hide our files from other users; create the folder of the workers' metrics."""
    os.umask(0o077)
    # In memory, if possible: requests that only read must work on a full disk.
    memory = "/dev/shm"  # noqa: S108
    if not os.access(memory, os.W_OK):
        memory = tempfile.gettempdir()
    remove_left_over(Path(memory))
    folder = settings.metrics_folder()
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix=COUNTS, dir=memory))
        settings.set_own_metrics_folder(folder)
    try:
        use_folder(folder)
    except OSError as problem:
        server.log.error(
            "Abacus does not start: PROMETHEUS_MULTIPROC_DIR is of no use: %s (%s). "
            "Create this folder for the metrics alone, or unset the variable.",
            folder,
            problem.strerror,
        )
        sys.exit(3)
    except engine.NotReady as problem:
        server.log.error("Abacus does not start: %s", problem)
        sys.exit(3)
    # The modules are read once, for all workers. It is done here, because
    # prometheus_client reads the folder's variable when it is imported.
    importlib.import_module("app")
    gc.freeze()  # what is never collected is never touched, so it stays shared
    let_new_workers_end()


def let_new_workers_end():
    """Let a signal end a worker that has not yet set its own handlers.

    Until then it has the master's, which put the signal into a queue that nobody
    reads in the worker: an orderly stop would wait for it for graceful_timeout.
    """
    ends = {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT}
    hold, deliver = (
        partial(signal.pthread_sigmask, how, ends)
        for how in (signal.SIG_BLOCK, signal.SIG_UNBLOCK)
    )

    def forget_the_masters():
        for end in ends:
            signal.signal(end, signal.SIG_DFL)
        deliver()

    os.register_at_fork(
        before=hold, after_in_parent=deliver, after_in_child=forget_the_masters
    )


def remove_left_over(memory):
    """Remove the metrics folders that a killed service of this user left behind."""
    for left in memory.glob(f"{COUNTS}*"):
        with suppress(OSError):  # a service has locked it, or it is not our folder
            status = left.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                lock = _lock(left, fcntl.LOCK_EX)
                try:
                    _remove(left)
                finally:
                    os.close(lock)


def use_folder(folder):
    """Lock the metrics folder; raise NotReady if it contains a database.

    The files of an earlier service are removed, unless the folder is in use by the
    master that this one replaces (USR2): then the counts continue.
    """
    folder = folder.resolve()
    for file in folder.iterdir():
        if factory.is_database(file):
            raise engine.NotReady(
                f"PROMETHEUS_MULTIPROC_DIR is {folder}, which holds the database "
                f"{file.name}: give the metrics a folder of their own."
            )
    try:
        lock = _lock(folder, fcntl.LOCK_EX)
    except BlockingIOError:
        _lock(folder, fcntl.LOCK_SH)  # held until the process ends
    else:
        _empty(folder)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _empty(folder):
    for file in folder.iterdir():
        if COUNT_FILE.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode):
            file.unlink()


def _remove(folder):
    """Remove a metrics folder; other files in it stay, and then the folder too."""
    if not any(map(factory.is_database, folder.iterdir())):
        _empty(folder)
        folder.rmdir()


def _lock(folder, mode):
    """Lock a folder until the returned handle is closed, here and in all forks."""
    # These flags refuse a pipe of this name, which would block the open for ever.
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(folder, os.O_RDONLY | flags)
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def child_exit(server, worker):
    """Keep the counters of a worker that ended, but not its gauges; free its place."""
    free(worker)
    # Imported late: prometheus_client reads the folder's variable when imported.
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)


def on_exit(server):
    """Remove our own metrics folder, unless a new master (USR2) uses it."""
    folder = settings.own_metrics_folder()
    if folder and not server.reexec_pid:
        with suppress(OSError):
            _remove(folder)


def pre_fork(server, worker):
    """Give a worker a place among the others, and a processor if each can have one."""
    worker.place = free_place(server.WORKERS.values())
    usable = sorted(os.sched_getaffinity(0)) if CAN_PIN else []
    worker.processor = None
    if usable and len(usable) <= server.num_workers:
        # A reload (HUP) reads these settings in a master that began with older ones.
        others = server.WORKERS.values()
        taken = Counter(getattr(one, "processor", None) for one in others)
        worker.processor = min(usable, key=taken.__getitem__)


def post_fork(server, worker):
    """Keep the threads of a worker on its processor.

    One of them runs at a time, because they share an interpreter. On several processors
    each call that gives it up wakes a thread elsewhere, which takes it: a write is
    interrupted ten to fifty times. On one, the caller mostly has it back first. A
    worker that may not choose its processor, as in some sandboxes, serves all the same.
    """
    if worker.processor is not None:
        with suppress(OSError):
            os.sched_setaffinity(0, {worker.processor})


def post_worker_init(worker):
    """Refuse to serve without a strong key or with a database of another schema."""
    app = worker.app.wsgi()
    app.extensions["database"].serve(worker.cfg.threads)
    try:
        refuse_shared_folder(app.extensions["database"].file)
        keys_are_ready(app)
        with app.app_context():
            schema.verify()
            schema.refuse_altered(TABLES)
    except (WeakSecret, engine.NotReady) as problem:
        worker.log.error("Abacus does not start: %s", problem)
        sys.exit(3)  # gunicorn does not restart a worker that exits with 3
    except peewee.OperationalError as problem:
        worker.log.warning("Abacus starts; its database: %s", problem)
    # A tenth of the default, so that a thread that exports delays the others less.
    sys.setswitchinterval(0.0005)


def refuse_shared_folder(database):
    """Raise NotReady if the metrics folder is the folder of the database."""
    folder = settings.metrics_folder()
    folder = folder and folder.resolve()
    if database is not None and database.resolve().parent == folder:
        raise engine.NotReady(
            f"PROMETHEUS_MULTIPROC_DIR is {folder}, the folder of the database: "
            "give the metrics a folder of their own."
        )


def pre_request(worker, request):
    """Close the connections of a worker whose master has died, so that it ends soon."""
    if os.getppid() != worker.ppid:
        worker.alive = False


def post_request(worker, request, environ, response):
    """Exit after in-flight requests when a fresh worker is needed."""
    # Imported late: prometheus_client reads the folder's variable when imported.
    from web.errors import LEAVE

    if environ.get(LEAVE):
        worker.handle_exit(None, None)
