"""Ways in which a disk, a colleague or a killed copy damages a file."""

from pathlib import Path


def flip_bit(path: Path, *, at: int | None = None) -> None:
    """Flip the lowest bit of one byte, by default that in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def extend(path: Path) -> None:
    """Add a byte to a file."""
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path: Path) -> None:
    """Delete a file."""
    path.unlink()


WAYS = {"flipped": flip_bit, "truncated": truncate, "extended": extend, "deleted": delete}
