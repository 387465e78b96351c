"""Formulas: the TeX that arithmatex left in a page becomes MathML."""

import html
import re

from latex2mathml.converter import convert

# what `pymdownx.arithmatex` with `generic: true` writes
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def with_mathml(page: str) -> str:
    """Return an HTML page with each formula as MathML; a formula on lines of its own is displayed."""
    return _FORMULA.sub(_mathml, page)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found["open"] == "[" else "inline"
    formula = convert(html.unescape(found["tex"]), display=display)
    return f"<{found['tag']}>{formula}</{found['tag']}>"
