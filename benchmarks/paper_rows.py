"""The rows of the table of the paper's results against ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import paper_reasons as reasons
from benchmarks.matched_load import SCALE, Matched
from benchmarks.paper_cases import DEEPSEEK, LLAMA, PAPER_FLOORS
from benchmarks.paper_figures import (
    Factor,
    Results,
    allocation_text,
    group_at,
    quality_text,
    saving_text,
    scale_factor,
    scale_factors_by_rate,
    scale_text,
    single_text,
)
from cascadia_fast.baselines.systems import system_named

TRACE1, TRACE3 = DEEPSEEK[0], DEEPSEEK[2]
# What the paper reports, with the mean: others' scales over Cascadia's, and its traffic over theirs.
PAPER_SCALES = {
    "single": ("up to 4×, avg 2.8×", 2.8),
    "cascadeserve": ("up to 2.5×, avg 1.7×", 1.7),
    "routellm": ("avg 1.27× (Cascadia −21.3 %)", 1.27),
    "uniform-parallelism": ("up to 1.6×, avg 1.4×", 1.4),
    "uniform-allocation": ("up to 2.1×, avg 1.7×", 1.7),
}
PAPER_TRAFFIC = {
    "single": ("up to 5×, avg 3×", 3.0),
    "cascadeserve": ("up to 3.3×, avg 1.7×", 1.7),
    "sarathi": ("q = 90: up to 1.95×, avg 1.64×", 1.64),
    "routellm-ours": ("avg 1.19×", 1.19),
}
PAPER_LLAMA = ("up to 3.8×, avg 2.6×", 2.6)
COMPARED = (
    "single",
    "sarathi",
    "cascadeserve",
    "cascadeserve-tuned",
    "routellm",
    "routellm-ours",
    "uniform-parallelism",
    "uniform-allocation",
    "no-skipping",
    "alternating",
)
# In the short table beside the systems that the paper has figures for.
BRIEF = {
    "DeepSeek": ("cascadeserve-tuned", "routellm-ours", "alternating"),
    "Llama": ("cascadeserve-tuned", "routellm-ours"),
}
FAMILIES = {"DeepSeek": DEEPSEEK, "Llama": LLAMA}


@dataclass(frozen=True)
class Row:
    """One result: what it is, the paper's figure, ours, why ours is less, and whether the short table has it."""

    what: str
    paper: str
    here: str
    why: str = ""
    brief: bool = True


@dataclass(frozen=True)
class Found:
    """What one cascade's cases came to: the comparison at the files' rates, and at matched load."""

    results: Results
    matched: Matched


def rows(deepseek: Found, llama: Found) -> Iterator[Row]:
    """Return every row of the table."""
    both = (("DeepSeek", deepseek), ("Llama", llama))
    for family, found in both:
        yield from _at_matched_load(family, found)
    for family, found in both:
        yield from _at_the_files_rates(family, found.results)
    yield from _absolute(deepseek.results)
    yield from _costs(deepseek.results)
    yield from _case_study(deepseek.results)
    for family, found in both:
        what = f"{family}, which model the single one is"
        yield Row(what, "–", single_text(found.results), brief=family == "DeepSeek")
        for system in ("ours", "confident"):
            what = f"{family}, quality of {_title(system)} on requests that did not choose the plan"
            why = reasons.sample_reason(found.results, system)
            yield Row(what, "–", quality_text(found.results, system), why, brief=system == "ours")


def _at_matched_load(family: str, found: Found) -> Iterator[Row]:
    papers = PAPER_SCALES if family == "DeepSeek" else {"single": PAPER_LLAMA}
    for system in COMPARED:
        what = f"{family}, single model at {SCALE:g}: {_title(system)}, SLO scale over ours"
        brief = system in papers or system in BRIEF[family]
        yield _row(what, papers.get(system), found.matched.scales(system), _why_scale(family, system, found), brief)
    papers = PAPER_TRAFFIC if family == "DeepSeek" else {}
    for system in ("single", "cascadeserve", "cascadeserve-tuned", "sarathi", "routellm-ours"):
        what = f"{family}, traffic at scale {SCALE:g}: ours over {_title(system)}"
        factor = found.matched.traffic(system, highest_only=system == "sarathi" and family == "DeepSeek")
        yield _row(what, papers.get(system), factor, _why_traffic(family, system), system in papers)


def _why_scale(family: str, system: str, found: Found) -> str:
    """Why a system's scale is a smaller multiple of ours than the paper found."""
    names = FAMILIES[family]
    if system == "single":
        return f"{reasons.capacity_reason(names)} {reasons.same_model_reason(names)}"
    if system == "cascadeserve":
        fixed, tuned = (found.matched.scales(name) for name in ("cascadeserve", "cascadeserve-tuned"))
        return reasons.tuning_reason(fixed, tuned)
    if system in ("routellm", "routellm-ours"):
        return reasons.router_reason(names)
    if system == "uniform-allocation":
        return f"{reasons.skipped_reason(found.results)} {reasons.shape_reason(names[0])}"
    return reasons.shape_reason(names[0]) if system == "uniform-parallelism" else ""


def _why_traffic(family: str, system: str) -> str:
    if system == "routellm-ours":
        return reasons.router_reason(FAMILIES[family])
    return reasons.capacity_reason(FAMILIES[family])


def _at_the_files_rates(family: str, results: Results) -> Iterator[Row]:
    for system in COMPARED:
        what = f"{family}, 0.5, 1 and 1.5 times the file's rate: {_title(system)}, SLO scale over ours"
        yield _row(what, None, scale_factor(results["ratios"], system), "", False)
    for factor, found in scale_factors_by_rate(results, "single").items():
        what = f"{family}, {factor:g} times the file's rate: single model, SLO scale over ours"
        yield _row(what, None, found, "", family == "DeepSeek")


def _absolute(results: Results) -> Iterator[Row]:
    for trace, place, other, paper in (
        (TRACE3, 1, "single", "single 11.88, Cascadia 3.75"),
        (TRACE1, 0, "cascadeserve", "CascadeServe 17.3, Cascadia 11.73"),
    ):
        q_min = _floors(results, trace)[place]
        theirs, ours = (scale_text(group_at(results, trace, name, q_min)) for name in (other, "ours"))
        what = f"trace {trace[-1]}, q = {PAPER_FLOORS[place]} ({q_min:g} here), the file's rate: smallest SLO scale"
        yield Row(what, paper, f"{_title(other)} {theirs}, ours {ours}", reasons.load_reason(trace, q_min))


def _costs(results: Results) -> Iterator[Row]:
    steps, capacity = reasons.step_reason(TRACE1), reasons.capacity_reason(DEEPSEEK)
    yield Row("cost at CascadeServe's SLO scale", "−20 to −39 %", saving_text(results, "cascadeserve"), steps)
    yield Row("cost at the single model's SLO scale", "−33 to −61 %", saving_text(results, "single"), capacity)


def _case_study(results: Results) -> Iterator[Row]:
    papers = ("reach 100/94/50 %, GPUs 4/8/20", "third model: 21 % on 16 GPUs")
    for place, paper in enumerate(papers):
        q_min = _floors(results, TRACE1)[place]
        here = allocation_text(group_at(results, TRACE1, "ours", q_min))
        why = reasons.first_model_reason(TRACE1, q_min)
        yield Row(f"case study: trace 1, q = {PAPER_FLOORS[place]} ({q_min:g} here)", paper, here, why)


def _row(what: str, paper: tuple[str, float] | None, here: Factor, why: str, brief: bool) -> Row:
    """A row that says why only where ours falls short of the paper's mean."""
    short = paper is not None and (here.mean is None or here.mean < paper[1])
    return Row(what, "–" if paper is None else paper[0], str(here), why if short else "", brief)


def _title(name: str) -> str:
    return system_named(name).title


def _floors(results: Results, name: str) -> Sequence[float]:
    floors_of: Sequence[float] = next(one["q"] for one in results["cases"] if one["name"] == name)
    return floors_of
