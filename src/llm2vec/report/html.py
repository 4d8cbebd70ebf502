"""The report as one HTML page that loads nothing, and as Markdown, from the same sections.

The page has no scripts. It follows the reader's light or dark setting, and fits on a phone.
"""

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from llm2vec.conversion.run_folder import REPORT_FACTS, REPORT_FILES, report_files
from llm2vec.errors import RunError
from llm2vec.report.section import Facts, Section
from llm2vec.report.sections import sections
from llm2vec.runtime.files import atomic_file, resolved_folder, write_json
from llm2vec.runtime.optional import optional

_NUMERIC = re.compile(r"([-+]?[\d.]+(e-?\d+)?%?( to [-+]?[\d.]+)?)?")
"""A cell that is a number, a range of numbers, or empty."""


def report_folder(path: Path) -> Path:
    """The real path of a folder that a report can be written into.

    Raises:
        RunError: The folder holds files of these names that this program did not write.
        UsageError: The path is a file.
    """
    folder = resolved_folder(path, option="--out")
    there = [name for name in REPORT_FILES if (folder / name).exists()]
    if there and not report_files(folder):
        raise RunError(
            f"{folder / there[0]} was not written by this program; move it, or choose another --out"
        )
    return folder


def write_report(report: Facts, folder: Path) -> Path:
    """Write `report.html`, `report.md` and `report.json` into a folder.

    Returns:
        Path of the page.

    Raises:
        RunError: The folder holds files of these names that this program did not write.
        UsageError: The path is a file.
    """
    report_folder(folder).mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT_FACTS, report)
    parts = sections(report)
    markdown = f"# {_title(report)}\n\n{to_markdown(parts)}"
    for name, text in (("report.md", markdown), ("report.html", page(_title(report), parts))):
        with atomic_file(folder / name) as partial:
            partial.write_text(text, encoding="utf8")
    return folder / "report.html"


def to_html(report: Facts) -> str:
    """The report as one HTML page."""
    return page(_title(report), sections(report))


def page(title: str, parts: Sequence[Section]) -> str:
    """Sections as one page."""
    jinja2: Any = optional("jinja2", extra="report")
    assets = files("llm2vec") / "assets"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf8"))
    rendered: str = template.render(
        title=title,
        style=(assets / "report.css").read_text(encoding="utf8"),
        sections=parts,
        numeric_columns=_numeric_columns,
    )
    return rendered


def _title(report: Facts) -> str:
    return f"{report['encoder']}: what the conversion gained"


def _numeric_columns(table: Sequence[Sequence[str]]) -> list[bool]:
    """For each column, whether all its cells below the heading are numbers."""
    head, *rows = table
    return [
        bool(rows) and all(_NUMERIC.fullmatch(row[column]) for row in rows)
        for column in range(len(head))
    ]


def to_markdown(parts: Sequence[Section]) -> str:
    """Sections as Markdown, without their figures."""
    return "\n".join(line for section in parts for line in _markdown_lines(section))


def _markdown_lines(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    for paragraph in section.paragraphs:
        lines += [paragraph, ""]
    lines += [f"- {point}" for point in section.points]
    if section.points:
        lines.append("")
    for head, *rows in section.tables:
        lines += [_row(head), "|" + " --- |" * len(head), *map(_row, rows), ""]
    return lines


def _row(cells_of_row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells_of_row) + " |"
