"""Folders of modules that tests import by name: the local stack's package, and what drives it here."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "infra" / "local"), str(Path(__file__).parent)]
