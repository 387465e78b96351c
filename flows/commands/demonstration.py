"""`demo`: the whole pipeline on generated data, beside random and full selection."""

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson
from flows.commands.failures import during_run
from flows.commands.results import print_next_steps
from flows.commands.running import run_file
from flows.home import state_folder
from flows.rendering import count, decimal, only_messages, percent, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clusterucb_core.stages.summary import SubjectSummary

Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir", help="Folder of the demo; demo/ of the state folder without it.", show_default=False
    ),
]


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table: a mean over the seeds of random selection, None where unknown."""

    name: str
    n_subjects: int
    n_selected: int
    family_share: float
    captured_influence: float | None
    loss: float | None
    gradient_evaluations: int | None


def demo(folder: Folder = None, as_json: AsJson = False) -> None:
    """Run the pipeline on generated data.

    Writes a pool, a target and a tiny model, selects from them, and compares with random and full selection.
    """
    with only_messages(), during_run():
        from clusterucb_core.demo import TARGET_FAMILY, write_demo

        files = write_demo((folder or state_folder() / "demo").absolute())
    result = run_file(files.config, [])
    rows = compare_subjects(result.subjects, TARGET_FAMILY)
    pool_share = _pool_share(result.selection_version, TARGET_FAMILY)
    if as_json:
        table = [asdict(row) for row in rows]
        facts = {
            "config": str(files.config),
            "family": TARGET_FAMILY,
            "pool_share": pool_share,
            "comparison": table,
        }
        print_json({**facts, "result": result.model_dump(mode="json")})
        return
    _print_comparison(rows, TARGET_FAMILY, pool_share)
    print_next_steps(result)
    say(f"with your own   edit {files.config}, then clusterucb run {files.config}")


def compare_subjects(subjects: "Sequence[SubjectSummary]", family: str) -> list[DemoRow]:
    """Return random selection (the mean of its seeds), the selection and full selection side by side.

    Args:
        subjects: what a run came to; a subject that was not asked for has no row.
        family: the source whose share is wanted.
    """
    random = [subject for subject in subjects if subject.subject.startswith("random")]
    groups = {
        f"random (mean of {len(random)})": random,
        "clusterucb": [subject for subject in subjects if subject.subject == "selection"],
        "full": [subject for subject in subjects if subject.subject == "full"],
        "no fine-tuning": [subject for subject in subjects if subject.subject == "zero_shot"],
    }
    return [_mean_row(name, group, family) for name, group in groups.items() if group]


def _mean_row(name: str, group: "Sequence[SubjectSummary]", family: str) -> DemoRow:
    evaluations = _mean(group, lambda subject: subject.gradient_evaluations)
    return DemoRow(
        name=name,
        n_subjects=len(group),
        n_selected=group[0].n_selected,
        family_share=fmean(subject.sources.get(family, 0) / max(1, subject.n_selected) for subject in group),
        captured_influence=_mean(group, lambda subject: subject.captured_influence),
        loss=_mean(group, lambda subject: subject.loss),
        gradient_evaluations=None if evaluations is None else round(evaluations),
    )


def _mean(
    group: "Sequence[SubjectSummary]", value_of: "Callable[[SubjectSummary], float | None]"
) -> float | None:
    values = [value for subject in group if (value := value_of(subject)) is not None]
    return fmean(values) if len(values) == len(group) else None


def _pool_share(version: int, family: str) -> float:
    from clusterucb_core.store import open_catalog, selection_sources
    from clusterucb_core.workspace import Workspace

    with open_catalog(Workspace(home=str(state_folder())).catalog, read_only=True) as con:
        sizes = {row["source"]: row["n_pool"] for row in selection_sources(con, version).to_dicts()}
    return sizes.get(family, 0) / max(1, sum(sizes.values()))


def _print_comparison(rows: list[DemoRow], family: str, pool_share: float) -> None:
    say(f"target: {family}; its share of the pool is {percent(pool_share, 1)}")
    headers = [
        "selection",
        "selected",
        f"share of {family}",
        "captured influence",
        "test loss",
        "gradient evaluations",
    ]
    table = [
        [
            row.name,
            count(row.n_selected),
            percent(row.family_share, 1) if row.n_selected else None,
            decimal(row.captured_influence),
            decimal(row.loss),
            count(row.gradient_evaluations),
        ]
        for row in rows
    ]
    print_table(headers, table)
