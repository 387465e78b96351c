"""PostgreSQL of the stack: its programs, its data folder, its roles and databases.

Writes `stack/postgres`. It listens on 127.0.0.1 alone, without a Unix socket, and asks every user for
a password (SCRAM-SHA-256). PostgreSQL refuses root, so that root starts it as `postgres` or `nobody`.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from .errors import StackError
from .layout import HOST, Stack, clean_environment
from .passwords import password, password_file
from .processes import Service

SUPERUSER = "postgres"
DATABASES = ("prefect", "mlflow")  # each has one owner of the same name
ACCOUNTS = ("postgres", "nobody")
PROGRAMS = ("initdb", "postgres")


def postgres(stack: Stack) -> Service:
    """Return the database server, its data folder made where absent.

    Raises:
        StackError: its programs or a user to run it are missing, or the folder cannot be made.
    """
    data, account = stack.folder / "postgres" / "data", _account()
    programs = find_programs(_version(data))
    if not data.exists():
        _make_data(stack, programs, account)
    settings = [f"listen_addresses={HOST}", f"port={stack.ports['postgres']}", "unix_socket_directories="]
    line = [
        str(programs / "postgres"),
        "-D",
        str(data),
        *(word for text in settings for word in ("-c", text)),
    ]
    return Service(
        name="postgres",
        line=line,
        environment=clean_environment(),
        port=stack.ports["postgres"],
        ready=lambda _: _answers(stack),
        account=account,
    )


def make_databases(stack: Stack) -> None:
    """Make the roles and databases of the other services where absent, each role with its password."""
    connection = _connect(stack)
    connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
    try:
        with connection.cursor() as cursor:
            for name in DATABASES:
                _make_database(stack, cursor, name)
    finally:
        connection.close()


def database_url(stack: Stack, name: str, *, driver: str) -> str:
    """Return the SQLAlchemy address of a database, without the password: the driver reads PGPASSFILE."""
    return f"postgresql+{driver}://{name}@{HOST}:{stack.ports['postgres']}/{name}"


def _make_database(stack: Stack, cursor: psycopg2.extensions.cursor, name: str) -> None:
    # hashed here, so that the server, which may log a failed statement, never sees the password itself
    hashed = psycopg2.extensions.encrypt_password(
        password(stack, name), name, scope=cursor.connection, algorithm="scram-sha-256"
    )
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name])
    verb = "ALTER" if cursor.fetchone() else "CREATE"
    role = sql.SQL(verb + " ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(hashed))
    cursor.execute(role)
    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
    if not cursor.fetchone():
        cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*[sql.Identifier(name)] * 2))
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))


def _connect(stack: Stack) -> psycopg2.extensions.connection:
    return psycopg2.connect(
        host=HOST,
        port=stack.ports["postgres"],
        user=SUPERUSER,
        dbname="postgres",
        passfile=str(password_file(stack, SUPERUSER)),
        connect_timeout=5,
    )


def _answers(stack: Stack) -> bool:
    try:
        _connect(stack).close()
    except psycopg2.OperationalError as error:
        if "password authentication failed" in str(error):
            raise StackError(
                f"{password_file(stack, SUPERUSER)} does not fit the data in {stack.folder / 'postgres'}; "
                "put the file back, or remove the stack's data with infra/local/down --delete"
            ) from error
        return False
    return True


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in ACCOUNTS:
        if name in known:
            return known[name]
    raise StackError(
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(ACCOUNTS)}; run this as "
        "another user, or make one: useradd --system postgres"
    )


def _version(data: Path) -> str | None:
    """Return the major version that a data folder belongs to, None where there is none."""
    file = data / "PG_VERSION"
    return file.read_text("ascii").strip() if data.exists() else None


def find_programs(version: str | None) -> Path:
    """Return the folder of PostgreSQL's programs, of one major version if one is named."""
    found = [folder for folder in _candidates() if all((folder / name).exists() for name in PROGRAMS)]
    for folder in found:
        if version is None or _major(folder) == version:
            return folder
    if version is not None and found:
        raise StackError(
            f"the data are of PostgreSQL {version}, but only {', '.join(map(str, found))} is installed; "
            f"install PostgreSQL {version}, or remove the stack's data with infra/local/down --delete"
        )
    raise StackError(
        f"the programs {' and '.join(PROGRAMS)} of PostgreSQL were not found with pg_config, on PATH or "
        "under /usr/lib/postgresql; install the server, for instance `apt-get install postgresql`"
    )


def _candidates() -> Iterator[Path]:
    if config := shutil.which("pg_config"):
        answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)  # noqa: S603
        yield Path(answer.stdout.strip())
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: float(folder.parent.name), reverse=True)


def _major(folder: Path) -> str:
    line = [str(folder / "postgres"), "--version"]
    answer = subprocess.run(line, capture_output=True, text=True, check=True)  # noqa: S603
    return answer.stdout.split()[2].split(".")[0]


def _make_data(stack: Stack, programs: Path, account: pwd.struct_passwd | None) -> None:
    """Make the data folder beside its place and rename it, so that a half-made one is never used."""
    folder = stack.private("postgres")
    new, secret = folder / "data.new", folder / "password"
    shutil.rmtree(new, ignore_errors=True)
    secret.unlink(missing_ok=True)
    secret.touch(0o600)
    secret.write_text(password(stack, SUPERUSER), "ascii")
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
        os.chown(secret, account.pw_uid, account.pw_gid)
        _require_reachable(folder, account)
    line = [str(programs / "initdb"), "-D", str(new), "--username", SUPERUSER, "--pwfile", str(secret)]
    line += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--data-checksums"]
    made = _run_as(account, line)
    secret.unlink()
    if made.returncode != 0:
        raise StackError(f"initdb could not make {new} (exit code {made.returncode}): {made.stderr.strip()}")
    new.replace(folder / "data")


def _require_reachable(folder: Path, account: pwd.struct_passwd) -> None:
    if _run_as(account, ["/bin/sh", "-c", 'test -w "$1"', "sh", str(folder)]).returncode != 0:
        raise StackError(
            f"PostgreSQL runs as {account.pw_name}, who cannot enter {folder}; set CLUSTERUCB_HOME to a "
            "folder whose parents every user may enter (chmod o+x), or run this as a user other than root"
        )


def _run_as(account: pwd.struct_passwd | None, line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - the line is made by this package
        line,
        cwd="/",
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else [],
    )
