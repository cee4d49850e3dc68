"""A table that can be printed and put into an HTML page."""

from __future__ import annotations

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells are text already; the first `text_columns` columns are aligned to the left, the numbers to the right.

    Notes stand below, one a line.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    text_columns: int = 1
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        lines = [self.headers, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers))]

        def line_of(cells: list[str]) -> str:
            aligned = [
                cell.ljust(width) if i < self.text_columns else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(aligned).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([self.title, line_of(self.headers), rule, *map(line_of, self.rows), *self.notes])

    def html(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            kinds = ["text" if i < self.text_columns else "number" for i in range(len(cells))]
            parts = [
                f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True)
            ]
            return f"<tr>{''.join(parts)}</tr>"

        body = "\n".join(row(cells, "td") for cells in self.rows)
        head = row(self.headers, "th")
        notes = "".join(f"\n<p>{html.escape(note)}</p>" for note in self.notes)
        table = f"<table><thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"
        return f"<h3>{html.escape(self.title)}</h3>\n{table}{notes}"
