"""The report as something to look at: one HTML page that needs nothing else, and the same as Markdown.

Both are drawn from the same sections. The page has no scripts and loads nothing; it follows the reader's light or dark
setting and narrows to a phone.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from llm2vec.report.sections import Facts, Section, sections
from llm2vec.runtime.files import whole_file, write_json

_NUMERIC = re.compile(r"([-+]?[\d.]+(e-?\d+)?%?( to [-+]?[\d.]+)?)?")
"""A cell that is a number, a range of numbers, or empty."""


def write_report(report: Facts, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json` into a folder; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    markdown = f"# {_title(report)}\n\n{to_markdown(sections(report))}"
    for name, text in (("report.md", markdown), ("report.html", to_html(report))):
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf8")
    return folder / "report.html"


def to_html(report: Facts) -> str:
    """One page, everything in it."""
    style = (files("llm2vec") / "assets" / "report.css").read_text(encoding="utf8")
    body = "\n".join(_html(section) for section in sections(report))
    title = escape(_title(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def _title(report: Facts) -> str:
    return f"{report['encoder']}: what the conversion gained"


def _html(section: Section) -> str:
    parts = [f"<section>\n<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(each)}</p>" for each in section.text.split("\n") if each]
    if section.points:
        parts.append(f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in section.points)}</ul>")
    if section.figures:
        parts.append(f'<div class="figures">{"".join(section.figures)}</div>')
    if section.tables:
        label = escape(f"{section.title}, tables", quote=True)
        tables = "".join(map(_table, section.tables))
        parts.append(
            f'<div class="tables" tabindex="0" role="region" aria-label="{label}">{tables}</div>'
        )
    return "\n".join([*parts, "</section>"])


def _table(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    numeric = [all(_NUMERIC.fullmatch(row[place]) for row in rows) for place in range(len(head))]
    kinds = [' class="n"' if each and rows else "" for each in numeric]
    columns = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(head, kinds, strict=True)
    )
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds[1:], strict=True)
        )
        + "</tr>"
        for name, *row in rows
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def to_markdown(parts: Sequence[Section]) -> str:
    """Sections without their figures."""
    lines: list[str] = []
    for section in parts:
        lines += [
            f"## {section.title}",
            "",
            *(line for each in section.text.split("\n") if each for line in (each, "")),
            *(f"- {each}" for each in section.points),
            *([""] if section.points else []),
        ]
        for head, *rows in section.tables:
            lines += [_row(head), "|" + " --- |" * len(head), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells_of_row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells_of_row) + " |"
