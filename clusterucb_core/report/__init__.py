"""A report about a selection version: one HTML page that needs nothing else. Writes that file."""

from clusterucb_core.report.reporting import FORMAT, ReportResult, renew_report, run_reports, write_report

__all__ = ["FORMAT", "ReportResult", "renew_report", "run_reports", "write_report"]
