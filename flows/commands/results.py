"""The result of a run as `run` and `demo` print it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clusterucb_core.masking import masked_address
from flows.rendering import count, counted, decimal, interval, percent, print_table, say

if TYPE_CHECKING:
    from clusterucb_core.outcome import RunResult
    from clusterucb_core.stages.summary import SubjectSummary


def print_targets(result: "RunResult") -> None:
    """Print the subjects of each target as a table, under its name where there are several."""
    if len(result.targets) == 1:
        print_subjects(result.subjects)
        return
    for number, target in enumerate(result.targets):
        say(
            ("\n" if number else "") + f"target {target.target}, selection version {target.selection_version}"
        )
        print_subjects(target.subjects)


def print_subjects(subjects: "Sequence[SubjectSummary]") -> None:
    """Print one line for the selection and each baseline, and what their selections took."""
    headers = [
        "subject",
        "selected",
        "captured influence",
        "recall",
        "test loss [95 %]",
        "gradient evaluations",
    ]
    rows = [
        [
            subject.subject,
            count(subject.n_selected),
            decimal(subject.captured_influence),
            decimal(subject.recall),
            interval(subject.loss, subject.loss_low, subject.loss_high),
            count(subject.gradient_evaluations),
        ]
        for subject in subjects
    ]
    print_table(headers, rows)
    for subject in subjects:
        if subject.estimated_recall is not None:
            captured = interval(subject.estimated_captured, subject.captured_low, subject.captured_high)
            recall = interval(subject.estimated_recall, subject.recall_low, subject.recall_high)
            seen = f"captured influence {captured}, recall {recall}" if captured else f"recall {recall}"
            say(f"\nestimated from the audit of {subject.subject} [95 %]: {seen}")
    _print_costs(subjects)


def _print_costs(subjects: "Sequence[SubjectSummary]") -> None:
    """Print gradients and operations by stage of each subject, and all operations beside full selection's."""
    rows: list[list[object]] = []
    for subject in subjects:
        for stage, cost in subject.cost.items():
            gradients, flops = count(int(cost["gradient_evaluations"])), cost["flops"]
            share = percent(flops, subject.full_selection_flops or 0)
            rows.append([subject.subject, stage, gradients, f"{flops:.2e}", share])
        if subject.cost:
            flops, full = subject.selection_flops or 0.0, subject.full_selection_flops or 0.0
            rows.append([subject.subject, "total", count(subject.gradient_evaluations), f"{flops:.2e}"])
            rows[-1].append(percent(flops, full))
    if rows:
        headers = ["cost", "stage", "gradient evaluations", "operations", "of full selection"]
        print_table(headers, rows, gap=True, left=2)


def print_next_steps(result: "RunResult") -> None:
    """Print the versions of a run, what this call of it computed, and where to look."""
    versions = [target.selection_version for target in result.targets]
    computed = counted(result.work.gradient_evaluations, "gradient evaluation")
    named = f"selection version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"
    say(f"\n{named}, pool version {result.pool_version}, {result.seconds:.1f} s")
    say(f"this call computed {computed}, {counted(result.work.trainings, 'training')}")
    for warning in result.warnings:
        say(f"\nwarning: {warning}")
    say(f"\nthe selection   clusterucb show {versions[0]}")
    say(f"to a file       clusterucb export {versions[0]} selection.jsonl")
    say(f"in MLflow       {mlflow_place()}")
    say(f"in Prefect      {_prefect_place()}")


def mlflow_place() -> str:
    """Return where MLflow shows what was tracked: its address, or the command that serves it."""
    address = masked_address(os.environ["MLFLOW_TRACKING_URI"])
    return address if address.startswith("http") else f"mlflow ui --backend-store-uri {address}"


def _prefect_place() -> str:
    address = os.environ.get("PREFECT_API_URL")
    if address:
        return masked_address(address).removesuffix("/").removesuffix("/api")
    return f"PREFECT_HOME={os.environ['PREFECT_HOME']} prefect server start"
