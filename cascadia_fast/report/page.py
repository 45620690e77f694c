"""The page: its sections in order, each with the command that made its numbers."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from cascadia_fast.report.ablations import ablations
from cascadia_fast.report.about import case_table, facts, made_by, method, notes, system_pages
from cascadia_fast.report.attainment import attainment
from cascadia_fast.report.bars import allocations
from cascadia_fast.report.cells import cells
from cascadia_fast.report.headline import headline
from cascadia_fast.report.marks import boxes, legend, marks_of, style
from cascadia_fast.report.quality import qualities
from cascadia_fast.report.results import read_results
from cascadia_fast.report.savings import savings
from cascadia_fast.report.scales import scale_tables
from cascadia_fast.report.throughput import throughput


def report_html(results: dict[str, Any]) -> str:
    """Return the page of a comparison.

    Parameters
    ----------
    results : what a comparison writes as JSON.
    """
    read = read_results(results)
    marks = marks_of(read.systems)
    # Curves of ablations lie on ours nearly everywhere; they have a section of their own.
    drawn = read.of_kind("ours", "baseline") if read.of_kind("baseline") else read.systems
    others = read.of_kind("baseline") or read.of_kind("ablation")
    template = files("cascadia_fast").joinpath("data", "report.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"Comparison: {', '.join(case['name'] for case in read.cases)}"),
        style=style(read.systems),
        facts=facts(read),
        made=made_by(read),
        headline=headline(read, marks),
        scales=scale_tables(read, marks),
        boxes=boxes(read.systems, drawn, marks),
        attainment=attainment(read, drawn, marks),
        legend=legend(drawn, marks),
        throughput=throughput(read, drawn, marks),
        savings=savings(read, others, marks),
        allocations=allocations(read, marks),
        ablations=ablations(read, marks),
        qualities=qualities(read, marks),
        cells=cells(read, marks),
        pages=system_pages(read, marks),
        cases=case_table(read),
        notes=notes(read),
        method=method(read),
    )
