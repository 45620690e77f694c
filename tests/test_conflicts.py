"""The set of constraints named is contradictory, and no smaller one is."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.planning.conflicts import conflict_text, smallest_conflict

NAMES = "abcdefg"


@given(st.lists(st.frozensets(st.sampled_from(NAMES), max_size=5), min_size=1, max_size=5), st.permutations(NAMES))
def test_no_smaller_set_is_contradictory(conflicts: list[frozenset[str]], order: list[str]) -> None:
    """A plan exists exactly where none of the conflicts is complete."""

    def feasible(names: frozenset[str]) -> bool:
        return not any(conflict <= names for conflict in conflicts)

    found = smallest_conflict(order, feasible)
    assert not feasible(frozenset(found))
    assert len(found) == min(map(len, conflicts))
    assert list(found) == sorted(found, key=order.index)


def test_no_question_is_asked_twice_and_few_are_asked() -> None:
    asked: list[frozenset[str]] = []

    def feasible(names: frozenset[str]) -> bool:
        asked.append(names)
        return not {"b", "f"} <= names

    assert smallest_conflict(NAMES, feasible) == ("b", "f")
    assert len(asked) == len(set(asked))
    # One for each constraint; each single constraint but those within a set that has a plan: none is left to ask for.
    assert len(asked) <= len(NAMES) + 2


def test_three_constraints_where_every_two_go_together() -> None:
    def feasible(names: frozenset[str]) -> bool:
        return len(names & {"a", "c", "e"}) < 3

    assert smallest_conflict(NAMES, feasible) == ("a", "c", "e")
    assert all(feasible(frozenset(pair)) for pair in combinations(NAMES, 2))


def test_a_problem_without_plan_and_constraints_has_no_conflict() -> None:
    assert smallest_conflict(NAMES, lambda names: False) == ()


@pytest.mark.parametrize(
    ("conflict", "text"),
    [
        (("gpus",), "32 GPUs cannot be met"),
        (("q", "gpus"), "q_min 80 and 32 GPUs contradict each other"),
        (("q", "slo", "gpus"), "q_min 80, slo_s 2 and 32 GPUs contradict one another"),
    ],
)
def test_conflicts_read_as_a_clause(conflict: tuple[str, ...], text: str) -> None:
    assert conflict_text(conflict, {"q": "q_min 80", "slo": "slo_s 2", "gpus": "32 GPUs"}) == text
