"""gunicorn's settings of the echo: those of the service that cost or save time."""

import runpy
from pathlib import Path

of_service = runpy.run_path(str(Path(__file__).parent.parent / "gunicorn.conf.py"))
worker_class, workers = of_service["worker_class"], of_service["workers"]
threads, keepalive = of_service["threads"], of_service["keepalive"]
pre_fork, post_fork = of_service["pre_fork"], of_service["post_fork"]
