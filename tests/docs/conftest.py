"""Folders of modules that tests import by name: the reading of pages, and what makes parts of them."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "infra" / "docs"), str(Path(__file__).parent)]
