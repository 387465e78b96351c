"""What the pages of a finished site would load from another host."""

import re
from pathlib import Path

_LOADS = (
    re.compile(r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc="((?:https?:)?//[^"]+)"'),
    re.compile(
        r'<link\b(?![^>]*rel="(?:canonical|next|prev|alternate)")[^>]*?\bhref="((?:https?:)?//[^"]+)"'
    ),
)
_STYLE_LOADS = re.compile(r"""(?:url\(|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Return, as `file: address`, what pages and styles below a folder load from other hosts."""
    found: list[str] = []
    for path in sorted(site.rglob("*")):
        patterns = _LOADS if path.suffix == ".html" else (_STYLE_LOADS,) if path.suffix == ".css" else ()
        text = path.read_text(encoding="utf-8") if patterns else ""
        found.extend(
            f"{path.relative_to(site).as_posix()}: {address}"
            for pattern in patterns
            for address in pattern.findall(text)
        )
    return found
