"""The sections of a report in order: the facts of a run as sentences, figures and tables."""

from llm2vec.report import analysis_sections, task_sections
from llm2vec.report.section import Facts, Section

_BEFORE_EFFICIENCY = (
    task_sections.verdict,
    task_sections.changes,
    task_sections.words,
    task_sections.sentences,
    analysis_sections.training,
)
_AFTER_EFFICIENCY = (
    analysis_sections.future_tokens,
    analysis_sections.layers,
    analysis_sections.neighbours,
    analysis_sections.proofs,
    analysis_sections.run_facts,
)


def sections(report: Facts) -> list[Section]:
    """The sections of a report in order."""
    found = [section(report) for section in _BEFORE_EFFICIENCY]
    if report["efficiency"]:
        found.append(analysis_sections.efficiency(report))
    found += [section(report) for section in _AFTER_EFFICIENCY]
    return found
