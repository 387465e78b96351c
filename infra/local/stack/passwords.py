"""The passwords of the databases: made at random, kept in files of libpq's form that only the owner can read.

Prefect's driver and MLflow's read such a file themselves (PGPASSFILE): no password stands in an address,
a command line, a log or the server's own files.
"""

import os
import secrets
from pathlib import Path

from .errors import StackError
from .layout import HOST, Stack


def password_file(stack: Stack, role: str) -> Path:
    """Return the password file of a database role, made with a new password where absent."""
    path = stack.private("passwords") / role
    if not path.exists():
        _write_private(path, f"{HOST}:*:*:{role}:{secrets.token_hex(32)}\n")
    return path


def password(stack: Stack, role: str) -> str:
    """Return the password of a database role.

    Raises:
        StackError: its file does not hold one.
    """
    path = password_file(stack, role)
    fields = path.read_text("ascii").strip().split(":")
    if len(fields) != 5 or not fields[4]:
        raise StackError(
            f"{path} does not hold one line `host:port:database:user:password`; put it back, or remove the "
            "stack's data with infra/local/down --delete"
        )
    return fields[4]


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read at any time, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
