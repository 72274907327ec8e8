"""The server's settings, each with its reason; flags on the command line win."""

import fcntl
import os
import re
import stat
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import peewee
from gunicorn.glogging import Logger

from models import TABLES
from storage import engine, factory, schema
from web.keys import WeakSecret, keys_are_ready


class DiscreetLogger(Logger):
    """gunicorn's, without what a client sent: the path of a broken request too."""

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
worker_class = "gthread"  # a sync worker whose master was killed serves for ever
workers = 2
threads = 32  # of which all but four may wait to write: health is always answered
timeout = 30
graceful_timeout = 30
keepalive = 15
limit_request_line = 8190
umask = 0o077  # of its own files alone; on_starting sets the process's
logger_class = DiscreetLogger
accesslog = None  # the service writes its own lines, without user ids
control_socket_disable = True
# Never preload: a database handle that is open at a fork loses commits.
preload_app = False

COUNTS = "abacus-metrics-"  # begins the name of a folder that we make and remove
# In the environment, for the next master (USR2) too: the folder that we made.
MADE = "ABACUS_METRICS_FOLDER"
# How prometheus_client names a worker's files, and so all that is ever removed.
COUNT_FILE = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[0-9]+\.db")


def on_starting(server):
    """Let nobody else read our files; make the folder of the counts for /metrics."""
    os.umask(0o077)
    # In memory, if possible: a full disk must not stop those who only read.
    memory = "/dev/shm"  # noqa: S108
    if not os.access(memory, os.W_OK):
        memory = tempfile.gettempdir()
    remove_left_over(Path(memory))
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix=COUNTS, dir=memory)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ[MADE] = folder
    try:
        use_folder(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    except OSError as problem:
        server.log.error(
            "Abacus does not start: PROMETHEUS_MULTIPROC_DIR is of no use: %s", problem
        )
        sys.exit(3)
    except engine.NotReady as problem:
        server.log.error("Abacus does not start: %s", problem)
        sys.exit(3)


def remove_left_over(memory):
    """Remove the folders of counts that a killed service of this user left."""
    for left in memory.glob(f"{COUNTS}*"):
        with suppress(OSError):  # a service has it locked, or it is no folder of ours
            told = left.lstat()
            if stat.S_ISDIR(told.st_mode) and told.st_uid == os.geteuid():
                lock = _lock(left, fcntl.LOCK_EX)
                try:
                    _remove(left)
                finally:
                    os.close(lock)


def use_folder(folder):
    """Lock the folder of counts; raise NotReady where it holds a database.

    What an earlier service left is removed, unless the folder is in use: by the
    master that this one replaces (USR2), whose counts go on.
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
        _lock(folder, fcntl.LOCK_SH)  # and never let go
    else:
        _empty(folder)
        fcntl.flock(lock, fcntl.LOCK_SH)


def _empty(folder):
    for file in folder.iterdir():
        if COUNT_FILE.fullmatch(file.name) and stat.S_ISREG(file.lstat().st_mode):
            file.unlink()


def _remove(folder):
    """Remove a folder of counts; one that holds anything else stays, with that."""
    if not any(map(factory.is_database, folder.iterdir())):
        _empty(folder)
        folder.rmdir()


def _lock(folder, how):
    """Lock a folder until the answer is closed, here and in all forks."""
    # Whatever else has the name: a pipe, for one, would be waited for without end.
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(folder, os.O_RDONLY | flags)
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def child_exit(server, worker):
    """Keep what a worker counted, but not what it said of its present."""
    # Imported late: it looks for the folder when it is imported.
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)


def on_exit(server):
    """Take our folder away, unless a new master (USR2) goes on with it."""
    made = os.environ.get(MADE)
    if made and not server.reexec_pid:
        with suppress(OSError):
            _remove(Path(made))


def post_worker_init(worker):
    """Refuse to serve without a key, or with a database that is not ours."""
    app = worker.app.wsgi()
    try:
        refuse_shared_folder(app.extensions["database"].file)
        keys_are_ready(app)
        with app.app_context():
            schema.verify()
            schema.refuse_altered(TABLES)
    except (WeakSecret, engine.NotReady) as problem:
        worker.log.error("Abacus does not start: %s", problem)
        sys.exit(3)  # gunicorn's own code for "do not try again"
    except peewee.OperationalError as problem:
        worker.log.warning("Abacus starts; its database: %s", problem)
    app.extensions["database"].limit_waiting(max(1, worker.cfg.threads - 4))
    # A thread that exports keeps the others waiting a tenth as long as by default.
    sys.setswitchinterval(0.0005)


def refuse_shared_folder(database):
    """Raise NotReady where the metrics have the folder of the database."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).resolve()
    if database is not None and database.resolve().parent == folder:
        raise engine.NotReady(
            f"PROMETHEUS_MULTIPROC_DIR is {folder}, the folder of the database: "
            "give the metrics a folder of their own."
        )


def pre_request(worker, request):
    """Let an orphan close its connections, or busy callers keep it for 30 seconds."""
    if os.getppid() != worker.ppid:
        worker.alive = False


def post_request(worker, request, environ, response):
    """Leave once what has begun is done, where a new worker would do better."""

    from web.errors import LEAVE  # late: prometheus_client looks for the folder

    if environ.get(LEAVE):
        worker.handle_exit(None, None)
