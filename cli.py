"""The operator's commands."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import click
import peewee
from flask import Blueprint, current_app

import listing
import looks
import models
from ledger import conversions, proof
from ledger.counts import counted
from looks import LEVEL
from operations import backups, copier, importer
from operations.problems import MOST, Problems
from operations.staging import staging
from storage import engine, factory, files, schema
from storage.engine import database
from targeting.decision import STATUSES
from views import figures, tables
from web import auth, html, keys, links

EXPECTED = (
    engine.NotReady,
    models.Conflict,
    keys.WeakSecret,
    backups.NotProved,
    files.InUse,
    importer.NotReadable,
)
MOST_DAYS = 36_500  # a hundred years
LINK_LASTS = timedelta(minutes=10)
ADDRESS = re.compile(r"https?://[^\s/?#]+/?")
commands = Blueprint("commands", __name__, cli_group=None)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an expected error in one line, without a traceback."""
    try:
        yield
    except EXPECTED as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(_explained(error)) from error
    except (peewee.DatabaseError, files.DriverError) as error:
        here: engine.Engine = current_app.extensions["database"]
        raise click.ClickException(here.explained(error)) from error


STEPS: dict[type[OSError], str] = {
    FileNotFoundError: "Create its folder, or name another file.",
    PermissionError: "Let this user read and write it, or name another file.",
    FileExistsError: "Move it away, or name another file.",
    IsADirectoryError: "Name a file, not a folder.",
    NotADirectoryError: "Name a file in a folder.",
}


def _explained(error: OSError) -> str:
    """Return an error about a file as a line that says what to do."""
    if error.filename is None:
        return error.strerror or str(error)
    step = STEPS.get(type(error), "Free some space, or use another disk.")
    return f"{error.filename} cannot be used ({error.strerror}). {step}"


def _say(text: str) -> None:
    """Print text; say in one line where it cannot be written, as on a full disk."""
    try:
        click.echo(text.removesuffix("\n"))
    except BrokenPipeError:
        raise  # whoever reads it has enough; click ends the command
    except OSError as error:
        # Python would write the rest again at its end, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(
            f"The output cannot be written ({error.strerror}). Free some space, or "
            "write it elsewhere."
        ) from error


@commands.cli.command("init")
def init() -> None:
    """Create the secret and the database if missing, or migrate the database."""
    with errors_in_one_line():
        if keys.needs_secret(current_app) and not current_app.config["JWT_SECRET_KEY"]:
            _make_secret(Path(current_app.config["SECRET_FILE"]))
        did = schema.create(current_app.extensions["database"], models.TABLES)
    _say(f"The database is {did}.")


def _make_secret(file: Path) -> None:
    """Write a random secret that only its owner can read; keep an existing one."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
    except OSError as error:  # which names the draft, that nobody has asked for
        raise OSError(error.errno, error.strerror, str(file)) from error
    with os.fdopen(handle, "w") as draft:
        draft.write(secrets.token_urlsafe(48))
    try:
        os.link(name, file)  # only one of several at once succeeds
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


@commands.cli.command("token")
@click.argument("subject")
@click.option("--scope", help='Any of "read write assign"; without it, all.')
@click.option("--days", type=float, default=30.0)
@click.option(
    "--link",
    metavar="ADDRESS",
    help="Print a link that signs a browser in at this address, if it is opened within "
    "10 minutes.",
)
def token(subject: str, scope: str | None, days: float, link: str | None) -> None:
    """Print a token for SUBJECT, and nothing else."""
    if unknown := sorted(set((scope or "").split()) - set(auth.SCOPES)):
        named = ", ".join(map(repr, unknown))
        raise click.ClickException(
            f"There is no scope {named}: give any of {', '.join(auth.SCOPES)}, with "
            "spaces between them, or leave --scope out for all of them."
        )
    if not 0 < days <= MOST_DAYS:  # NaN fails this too
        raise click.ClickException(f"--days is above 0 and at most {MOST_DAYS:,}.")
    if not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise click.ClickException("A subject has 1 to 255 printable characters.")
    with errors_in_one_line():
        if link is None:
            made = auth.new_token(subject, scope, timedelta(days=days))
        else:
            made = _sign_in_link(link, subject, scope, timedelta(days=days))
    _say(made)


def _sign_in_link(
    address: str, subject: str, scope: str | None, lasts: timedelta
) -> str:
    """Return a link of the service at this address that signs a browser in."""
    if not ADDRESS.fullmatch(address):
        raise click.ClickException(
            "--link takes the address of the service, such as http://127.0.0.1:8000."
        )
    if scope is not None and "read" not in scope.split():
        raise click.ClickException("The pages need the scope 'read'.")
    signed = links.signed(
        links.SIGN_IN,
        min(LINK_LASTS, lasts),
        sub=subject,
        scope=scope,
        until=int(time.time() + lasts.total_seconds()),
        scheme=address.partition(":")[0],
    )
    return f"{address.rstrip('/')}{html.SIGN_IN}/{signed}"


@commands.cli.command("import")
@click.argument("experiment")
@click.argument("file", type=click.Path(path_type=Path))
def import_(experiment: str, file: Path) -> None:
    """Load assignments and conversions made elsewhere into EXPERIMENT.

    EXPERIMENT is the id or the key of an experiment that has been started.

    FILE is CSV or NDJSON (by its name: .ndjson, .jsonl), with or without gzip, or a
    pipe. The whole file is checked before anything is written.
    """
    with errors_in_one_line():
        schema.verify()
        target = _named(experiment)
        conversions.refuse_unless_open(target)
        with staging(database.obj.file) as staged:
            problems = Problems()
            with _progress("Checking", _size(file)) as progress:
                for line, problem in importer.stage(target, file, staged, progress):
                    problems.add(line, problem)
            _refuse(problems)
            with _progress("Writing", staged.count) as progress:
                done = importer.write(target, staged, progress)
    _say(
        f"{done.lines} lines: {done.enrolled} users enrolled, {done.counted} "
        "conversions."
    )
    if done.after_window:
        _say(
            f"{done.after_window} conversions came after the window of their metric "
            "and were left out."
        )


def _refuse(problems: Problems) -> None:
    """Print the problems of a file, and end with an error if there are any."""
    for sentence in problems.sentences():
        click.echo(sentence, err=True)
    if problems.lines:
        raise click.ClickException(
            f"{problems.lines:,} bad lines; nothing was written."
        )


@commands.cli.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this state.")
@click.option("--archived", is_flag=True, help="Those that are archived too.")
def list_(status: str | None, archived: bool) -> None:
    """Print the experiments, newest first."""
    with errors_in_one_line():
        schema.verify()
        rows = list(listing.all_of(status, archived))
        sheet = tables.experiments(rows, _width())
    _say(tables.plain(sheet, _width()))


@commands.cli.command("results")
@click.argument("experiment")
def results(experiment: str) -> None:
    """Print what the counts of EXPERIMENT say, and the counts.

    EXPERIMENT is the id or the key of an experiment. It is a look like one by the API.
    """
    with errors_in_one_line():
        schema.verify()
        target = _named(experiment)
        computed = tables.analysis(target.name, looks.look(target, None, None, LEVEL))
        counts = tables.counts(target.name, figures.results(counted(target), None))
    width = _width()
    _say(f"{tables.plain(computed, width)}\n{tables.plain(counts, width)}")


def _width() -> int:
    """Return the columns for a table: those of the terminal, and at most 80."""
    return min(shutil.get_terminal_size().columns, tables.WIDTH)


def _named(name: str) -> models.Experiment:
    """Return the experiment with this id or key, or say how to find one."""
    experiment = models.Experiment.named(name)
    if experiment is None:
        raise click.ClickException(
            f"There is no experiment {name!r}: `flask --app wsgi list --archived` "
            "prints the keys of all."
        )
    return experiment


@contextmanager
def _progress(
    label: str, length: int | None = None
) -> Iterator[Callable[[int], object]]:
    """Show progress on a terminal, and yield what is called with each step of it.

    Without a known length it shows that something is done, and for how long.
    """
    bar = click.progressbar(
        itertools.count(),  # click wants a length, or something that has none
        length=length or None,
        label=label,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    )
    with bar:
        yield bar.update


def _size(file: Path) -> int:
    """Return the size of a regular file, or 0 where none is known."""
    with suppress(OSError):  # the import itself says why a file cannot be read
        return file.stat().st_size if file.is_file() else 0
    return 0


def _proved_rows() -> int:
    """Return how many rows a proof reads, or 0 where nobody watches its progress."""
    return proof.rows() if sys.stderr.isatty() else 0


def _line_start() -> str:
    """Return what moves a terminal from a progress bar to an empty line."""
    return "\r\033[K" if sys.stderr.isatty() else ""


@commands.cli.command("check")
def check() -> None:
    """Verify the file, its schema, and every count against its rows.

    Exit with 1 if one is wrong.
    """
    with errors_in_one_line():
        schema.verify()
        schema.refuse_altered(models.TABLES)
        wrong = 0
        with _progress("Checking", _proved_rows()) as progress:
            database.obj.examine()
            for sentence in proof.discrepancies(progress):
                wrong += 1
                if wrong <= MOST:
                    click.echo(f"{_line_start()}{sentence}", err=True)
    if wrong > MOST:
        click.echo(f"{wrong - MOST:,} more are wrong.", err=True)
    if wrong:
        raise click.ClickException(f"{wrong:,} counts are not what their rows say.")
    _say("Every count is what its rows say.")


@commands.cli.command("vacuum")
def vacuum() -> None:
    """Rewrite the file, so that no unused part contains an erased user.

    Writes wait meanwhile, and after 5 seconds they get 503. Memory must hold the whole
    database once.
    """
    with errors_in_one_line():
        schema.verify()
        with _progress("Writing anew") as progress:
            done = database.obj.write_anew(progress) and database.obj.empty_log()
    if not done:
        raise click.ClickException(
            "Another process uses the database or its log for long: run the command "
            "again when it has ended."
        )
    _say("The file is written anew.")


@commands.cli.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the database to FILE while it is in use, and verify the copy.

    FILE must not exist; it appears when the copy is verified.
    """
    with errors_in_one_line():
        schema.verify()
        with _progress("Backing up", _proved_rows()) as progress:
            held = backups.back_up(file, progress)
    _tell(file, held)


@commands.cli.command("copy")
@click.argument("source_url")
@click.argument("target_url")
def copy(source_url: str, target_url: str) -> None:
    """Copy the database at SOURCE_URL into the one at TARGET_URL, and verify the copy.

    Stop the service first. The target does not exist, or is empty; its engine may be
    another one. A copy that was interrupted is continued by the same command.
    """
    with errors_in_one_line():
        source = factory.database_at(source_url, "SOURCE_URL")
        target = factory.database_at(target_url, "TARGET_URL")
        with copier.copying(source, target) as copied:
            with _progress("Copying", copied.rows) as progress:
                copied.fill(progress)
            with _progress("Proving", copied.rows) as progress:
                held = copied.prove(progress)
    _tell("The target", held)


@commands.cli.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Verify FILE, and change nothing.")
def restore(file: Path, dry_run: bool) -> None:
    """Verify FILE, and replace the database by a copy of it.

    Stop the service first. The replaced database is kept beside the new one.
    """
    target = current_app.extensions["database"].file
    if target is None:
        raise click.ClickException(
            "Only a database in a file is restored so. For PostgreSQL, see "
            "docs/postgresql.md."
        )
    with errors_in_one_line():
        if dry_run:
            with _progress("Verifying") as progress:
                held = backups.prove(file, progress)
            _tell(file, held)
            if not target.exists():
                _say(f"It would become {target}, where there is none.")
            elif files.is_open(target):
                _say(f"Before it can replace {target}, stop the service.")
            else:
                _say(f"It would replace {target}, which would be kept.")
            return
        with _progress("Verifying") as progress:
            held, aside = backups.restore(file, target, progress)
    _tell(target, held)
    if aside is not None:
        _say(f"What was there is now {aside}")


def _tell(copy: Path | str, held: backups.Counts) -> None:
    for name, number in held.items():
        _say(f"{number:>12} {name}")
    _say(f"{copy} is whole, and every count in it is what its rows say.")
