"""Exports of selections for trainers."""

from clusterucb_core.export.exporting import export_selection, renew_export
from clusterucb_core.export.options import ExportFormat, ExportOptions, ExportResult, Order, Trainer

__all__ = [
    "ExportFormat",
    "ExportOptions",
    "ExportResult",
    "Order",
    "Trainer",
    "export_selection",
    "renew_export",
]
