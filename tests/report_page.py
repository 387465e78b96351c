"""Reads a report as a reader would, and says from the catalog alone what each of its numbers should be.

It is also looked at in a headless Chromium from the file system, with the network off.
"""

import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")

# Inside these, digits are names, dates, code, texts of samples or ticks of a drawing.
NOT_PROSE = {"svg", "style", "code", "pre", "time", "bdi", "title", "script"}
SUMMARY = "SELECT {field} FROM selections WHERE selection_version = $v"
DRAWN = "FROM pulls WHERE selection_version = $v AND cluster = $key::INTEGER"
BY_CLUSTER = {
    "n_drawn": f"SELECT count(*) {DRAWN}",
    "mean_reward": f"SELECT avg(reward) {DRAWN}",
    "best_reward": f"SELECT max(reward) {DRAWN}",
    "n_selected": "SELECT count(*) FROM selection_samples WHERE selection_version = $v "
    "AND cluster = $key::INTEGER",
    "n_pool": "SELECT count(*) FROM clusters WHERE cluster = $key::INTEGER AND clustering = $clustering",
}
OF_SOURCE = "JOIN samples USING (sample_id) WHERE source = $key"
BY_SOURCE = {
    "n_selected": f"SELECT count(*) FROM selection_samples {OF_SOURCE} AND selection_version = $v",
    "n_pool": f"SELECT count(*) FROM pool_samples {OF_SOURCE} AND pool_version = $pool",
}
BINS = {
    "first": "min(step)", "last": "max(step)",
    "by_bound": "count(*) FILTER (isfinite(bound))", "by_chance": "count(*) FILTER (bound IS NULL)",
    "mean_bound": "avg(bound)", "mean_arm": "avg(arm_mean) FILTER (isfinite(bound))",
    "mean_reward": "avg(reward)",
}  # fmt: skip


class ReportPage(HTMLParser):
    """The numbers of a report, and the rest of its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str, str]] = []  # field, key, exact value, text shown
        self.prose: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self._data: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "link", "br"):
            self._open.append("code" if given.get("class") == "id" else tag)
        if tag == "data":
            self._data = [given["data-of"], given["data-key"], given["value"], ""]

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()
        if tag == "data":
            self.numbers.append(tuple(self._data))
            self._data = None

    def handle_data(self, data: str) -> None:
        if self._data is not None:
            self._data[3] += data
        elif not NOT_PROSE & set(self._open):
            self.prose.append(data)


def shown_value(text: str) -> tuple[float, float]:
    """Return a number as a reader takes it, and half of its last place."""
    number, percent, _ = text.replace(",", "").partition("%")
    value, scale = float(number), 0.01 if percent else 1.0
    mantissa, _, exponent = number.strip().partition("e")
    places = len(mantissa.partition(".")[2])
    return value * scale, 0.5 * 10.0 ** (int(exponent or 0) - places) * scale


def expected(con: Any, version: int, field: str, key: str) -> float:
    """Return what the catalog says of one number of the report on a version."""
    table, _, name = field.partition(".")
    one = _asker(con, version, key)
    pool = one("SELECT pool_version FROM selections WHERE selection_version = $v")
    match table:
        case "selections" if name == "flops_share":
            return one(SUMMARY.format(field="selection_flops / full_selection_flops"))
        case "selections":
            return one(SUMMARY.format(field=name))
        case "pools":
            return one(f"SELECT {name} FROM pools WHERE pool_version = $pool", pool=pool)
        case "evaluations":
            return _evaluation(one, name, key)
        case "comparisons":
            task, metric, baseline = key.split("|")
            return one(
                f"SELECT {name} FROM comparisons WHERE selection_version = $v AND task = $task "
                "AND metric = $metric AND baseline = $baseline",
                task=task, metric=metric, baseline=baseline,
            )  # fmt: skip
        case "cost":
            text = one("SELECT cost::VARCHAR FROM selections WHERE selection_version = $v")
            return json.loads(text)[key][name]
        case "run_stages":
            run = one("SELECT run_id FROM selections WHERE selection_version = $v")
            return one(f"SELECT sum({name}) FROM run_stages WHERE run_id = $run AND stage = $key", run=run)
        case "sources" if name.startswith("share"):
            picked = one("SELECT count(*) FROM selection_samples WHERE selection_version = $v")
            whole = one("SELECT count(*) FROM pool_samples WHERE pool_version = $pool", pool=pool)
            part = name.replace("share_", "n_")
            return one(BY_SOURCE[part], pool=pool) / (picked if part == "n_selected" else whole)
        case "sources":
            return one(BY_SOURCE[name], pool=pool)
        case "clusters":
            clustering = one("SELECT clustering FROM clusters LIMIT 1")
            if name == "share_selected":
                size = one(BY_CLUSTER["n_pool"], clustering=clustering)
                return one(BY_CLUSTER["n_selected"]) / size
            return one(BY_CLUSTER[name], clustering=clustering)
        case "samples":
            query = f"SELECT {name} FROM selection_samples WHERE selection_version = $v AND sample_id = $key"
            return one(query)
        case "bins":
            return _bin(one, name, key)
        case "difference":
            return _difference(one, name, key)
    return _simple(one, field)


def _asker(con: Any, version: int, key: str):
    def ask(query: str, **more: Any) -> Any:
        known = {"v": version, "key": key} | more
        return con.execute(query, {n: v for n, v in known.items() if f"${n}" in query}).fetchone()[0]

    return ask


def _evaluation(one: Any, name: str, key: str) -> float:
    task, metric, subject = [*key.split("|"), "random"][:3]
    run = one("SELECT run_id FROM selections WHERE selection_version = $v")
    target = one("SELECT target FROM selections WHERE selection_version = $v")
    query = (
        "SELECT {} FROM evaluations WHERE run_id = $run AND target = $target AND task = $task "
        "AND metric = $metric AND subject {}"
    )
    known = {"run": run, "target": target, "task": task, "metric": metric}
    if name == "random_mean":
        return one(query.format("avg(value)", "LIKE 'random:%'"), **known)
    return one(query.format(name, "= $subject"), **known, subject=subject)


def _bin(one: Any, name: str, key: str) -> float:
    first, last = (int(part) for part in key.split("-"))
    if name == "kth_best":
        k = one("SELECT count(*) FROM selection_samples WHERE selection_version = $v")
        return one(
            "SELECT min(reward) FROM (SELECT reward FROM pulls WHERE selection_version = $v "
            "AND step <= $last ORDER BY reward DESC LIMIT $k)", last=last, k=k,
        )  # fmt: skip
    query = f"SELECT {BINS[name]} FROM pulls WHERE selection_version = $v AND step BETWEEN $first AND $last"
    return one(query, first=first, last=last)


def _difference(one: Any, name: str, key: str) -> float:
    part, _, value = key.partition("|")
    before = one(_PREVIOUS)
    picked = (
        "SELECT sample_id, rank, cluster, source FROM selection_samples LEFT JOIN samples USING (sample_id)"
    )
    a, b = (f"({picked} WHERE selection_version = {number})" for number in (before, "$v"))
    counted = {
        "added": "count(*) FILTER (a.rank IS NULL)",
        "removed": "count(*) FILTER (b.rank IS NULL)",
        "kept": "count(*) FILTER (a.rank IS NOT NULL AND b.rank IS NOT NULL)",
        "mean_rank_move": "avg(abs(b.rank - a.rank))",
    }[name]
    wanted = "" if part == "all" else f"WHERE coalesce(b.{part}, a.{part})::VARCHAR = $value"
    return one(f"SELECT {counted} FROM {a} AS a FULL JOIN {b} AS b USING (sample_id) {wanted}", value=value)


_PREVIOUS = (
    "SELECT max(selection_version) FROM selections WHERE selection_version < $v "
    "AND target = (SELECT target FROM selections WHERE selection_version = $v)"
)


_OF_RUN = (
    "FROM selections JOIN (SELECT run_id, target, period AS last FROM selections "
    "WHERE selection_version = $v) USING (run_id, target) WHERE period <= last"
)


def _simple(one: Any, field: str) -> float:
    queries = {
        "pulls.reward": "SELECT reward FROM pulls WHERE selection_version = $v AND sample_id = $key",
        "pulls.n": "SELECT count(*) FROM pulls WHERE selection_version = $v",
        "run.periods": f"SELECT count(*) {_OF_RUN}",
        "run.gradient_evaluations": f"SELECT sum(gradient_evaluations) {_OF_RUN}",
        "run.flops_share": f"SELECT sum(selection_flops) / sum(full_selection_flops) {_OF_RUN}",
        "previous.selection_version": _PREVIOUS,
        "previous.pool_version": "SELECT pool_version FROM selections WHERE selection_version = "
        f"({_PREVIOUS})",
    }
    return one(queries[field])


def stray_digits(page: ReportPage) -> list[str]:
    """Return pieces of prose with a number that says not where it is from.

    95 % is of every interval, and digits within a word are part of a name, such as gsm8k.
    """
    return [text for text in page.prose if re.search(r"(?<!\w)\d[\d.,]*(?!\w)", text.replace("95 %", ""))]


@dataclass(frozen=True)
class Look:
    """What a browser saw of a page: messages, requests besides the page, axe's violations, its width."""

    messages: list[str]
    requests: list[str]
    violations: list[str]
    scroll_width: int
    shown: str


def look_at(path: Path, shot: Path, *, width: int, scheme: str) -> Look:
    """Open a report, unfold it, take a picture, and let axe-core judge it; skipped without a browser."""
    import axe_playwright_python
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    rules = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        ).new_page()
        messages: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        page.screenshot(path=shot, full_page=True)
        seen = page.evaluate("document.documentElement.scrollWidth")
        shown = page.locator("body").inner_text()
        page.evaluate(f"{rules}; undefined")
        found = page.evaluate("axe.run().then(result => result.violations.map(v => v.impact + ': ' + v.id))")
        browser.close()
    return Look(messages, [url for url in requests if url != path.as_uri()], found, seen, shown)
