"""The service for a WSGI server: `gunicorn wsgi:app`."""

import sys

from app import create_app
from web.settings import WrongSetting

try:
    app = create_app()
except WrongSetting as problem:
    sys.stderr.write(f"Abacus does not start: {problem}\n")
    sys.exit(3)  # gunicorn's own code for "do not try again"
