"""The server's settings, each with its reason; flags on the command line win."""

import fcntl
import os
import shutil
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import peewee
from gunicorn.glogging import Logger

import engine
import models
from auth import WeakSecret, keys_are_ready


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


def on_starting(server):
    """Let nobody else read our files; make the folder of the counts for /metrics."""
    os.umask(0o077)
    # In memory, if possible: a full disk must not stop those who only read.
    memory = "/dev/shm"  # noqa: S108
    if not os.access(memory, os.W_OK):
        memory = tempfile.gettempdir()
    for left in Path(memory).glob(f"{COUNTS}*"):
        with suppress(OSError):  # somebody lives there, or it is another user's
            lock = _lock(left, fcntl.LOCK_EX)
            shutil.rmtree(left)
            os.close(lock)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix=COUNTS, dir=memory)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    _lock(os.environ["PROMETHEUS_MULTIPROC_DIR"], fcntl.LOCK_SH)  # and never let go
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
        file.unlink()


def _lock(folder, how):
    """Lock a folder until the answer is closed, here and in all forks."""
    handle = os.open(folder, os.O_RDONLY)
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
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if folder.name.startswith(COUNTS) and not server.reexec_pid:
        shutil.rmtree(folder, ignore_errors=True)


def post_worker_init(worker):
    """Refuse to serve without a key, or with a database that is not ours."""
    app = worker.app.wsgi()
    try:
        keys_are_ready(app)
        with app.app_context():
            models.verify()
    except (WeakSecret, engine.NotReady) as problem:
        worker.log.error("Abacus does not start: %s", problem)
        sys.exit(3)  # gunicorn's own code for "do not try again"
    except peewee.OperationalError as problem:
        worker.log.warning("Abacus starts; its database: %s", problem)
    app.extensions["database"].turns.most = max(1, worker.cfg.threads - 4)
    # A thread that exports keeps the others waiting a tenth as long as by default.
    sys.setswitchinterval(0.0005)


def pre_request(worker, request):
    """Let an orphan close its connections, or busy callers keep it for 30 seconds."""
    if os.getppid() != worker.ppid:
        worker.alive = False


def post_request(worker, request, environ, response):
    """Leave once what has begun is done, where a new worker would do better."""
    from wire import LEAVE  # late: prometheus_client looks for the folder

    if environ.get(LEAVE):
        worker.handle_exit(None, None)
