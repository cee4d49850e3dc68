"""One HTML file that needs nothing else: what was measured, on what, tables and plots."""

from __future__ import annotations

import html

from bench.table import Table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #1a1a1a; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 9px; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; }
tbody tr:hover { background: #f2f6fa; }
.text { text-align: left; }
.number { text-align: right; }
svg { max-width: 100%; height: auto; }
dt { font-weight: 600; float: left; clear: left; width: 12em; }
"""


def page(title: str, introduction: str, facts: dict[str, str], sections: list[Table | str]) -> str:
    """The page as text. Sections are tables, or SVG taken as it is."""
    listed = "\n".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    body = "\n".join(section.html() if isinstance(section, Table) else section for section in sections)
    heading = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{heading}</h1>\n<p>{html.escape(introduction)}</p>\n"
        f"<dl>{listed}</dl>\n{body}\n</body></html>\n"
    )
