"""The list of commands in the help, under headings."""

from typing import Any

from typer.core import TyperGroup


class GroupedCommands(TyperGroup):
    """Lists each command under the heading that it was registered with, its panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # typer does not export the types
        """Write a section for each heading."""
        groups: dict[str, list[tuple[str, str]]] = {}
        width = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None) or "Commands"
            groups.setdefault(heading, []).append((name, command.get_short_help_str(width)))
        for heading, rows in groups.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
