"""The server's settings, each with its reason; flags on the command line win."""

import os
import sys

import peewee

import models
from app import LEAVE
from auth import WeakSecret, keys_are_ready

bind = "127.0.0.1:8000"
worker_class = "gthread"  # a sync worker whose master was killed serves for ever
workers = 2
threads = 32  # of which all but four may wait to write: health is always answered
timeout = 30
graceful_timeout = 30
keepalive = 15
limit_request_line = 8190
umask = 0o077
accesslog = None  # the service writes its own lines, without user ids
control_socket_disable = True
# Never preload: a database handle that is open at a fork loses commits.
preload_app = False


def post_worker_init(worker):
    """Refuse to serve without a key, or with a database that is not ours."""
    try:
        keys_are_ready(worker.app.wsgi())
        models.verify()
    except (WeakSecret, models.NotReady) as problem:
        worker.log.error("Abacus does not start: %s", problem)
        sys.exit(3)  # gunicorn's own code for "do not try again"
    except peewee.OperationalError as problem:
        worker.log.warning("Abacus starts; its database: %s", problem)
    models.database.turns.most = max(1, worker.cfg.threads - 4)


def pre_request(worker, request):
    """Let an orphan close its connections, or busy callers keep it for 30 seconds."""
    if os.getppid() != worker.ppid:
        worker.alive = False


def post_request(worker, request, environ, response):
    """Leave once what has begun is done, where a new worker would do better."""
    if environ.get(LEAVE):
        worker.handle_exit(None, None)
