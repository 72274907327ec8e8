"""The service for a WSGI server: `gunicorn wsgi:app`."""

import sys

from app import create_app
from storage.engine import NotReady
from web.settings import WrongSetting

try:
    app = create_app()
except (WrongSetting, NotReady) as problem:
    sys.stderr.write(f"Abacus does not start: {problem}\n")
    sys.exit(3)  # gunicorn does not restart a worker that exits with 3
