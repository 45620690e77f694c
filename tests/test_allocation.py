"""Both programs against brute force over every allocation, and against each other."""

from __future__ import annotations

import itertools
import threading

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascadia_fast.errors import InputError, NoPlanError, PoolTooSmallError
from cascadia_fast.planning.allocation import Allocation, paper_milp, prune, pruned_milp

Tables = list[NDArray[np.float64]]

latencies = st.one_of(st.just(np.inf), st.floats(1e-3, 1000.0), st.sampled_from([0.0, 1.0, 2.0, 3.0]))


@st.composite
def problems(draw: st.DrawFn, monotone: bool = False) -> tuple[Tables, int]:
    stages = draw(st.integers(1, 3))
    gpus = draw(st.integers(1, 7))
    tables = [np.array(draw(st.lists(latencies, min_size=gpus + 1, max_size=gpus + 1))) for _ in range(stages)]
    return ([np.minimum.accumulate(table) for table in tables] if monotone else tables), gpus


def best_by_brute_force(tables: Tables, gpus: int, exact_sum: bool) -> float:
    best_s = np.inf
    for split in itertools.product(range(gpus + 1), repeat=len(tables)):
        if sum(split) == gpus or (sum(split) < gpus and not exact_sum):
            best_s = min(best_s, max(table[f] for table, f in zip(tables, split, strict=True)))
    return float(best_s)


def assert_is_allocation(found: Allocation, tables: Tables, gpus: int, exact_sum: bool) -> None:
    assert found.status == "optimal"
    assert sum(found.gpus) == gpus if exact_sum else sum(found.gpus) <= gpus
    assert found.latency_s == max(table[f] for table, f in zip(tables, found.gpus, strict=True))


def as_columns(tables: Tables) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    return [(np.arange(table.size), table) for table in tables]


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_paper_milp_equals_brute_force(problem: tuple[Tables, int], exact_sum: bool) -> None:
    tables, gpus = problem
    best_s = best_by_brute_force(tables, gpus, exact_sum)
    if not np.isfinite(best_s):
        with pytest.raises(NoPlanError):
            paper_milp(tables, gpus, exact_sum)
        return
    found = paper_milp(tables, gpus, exact_sum)
    assert_is_allocation(found, tables, gpus, exact_sum)
    assert found.latency_s == pytest.approx(best_s, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(problems(), st.booleans())
def test_pruned_milp_equals_brute_force(problem: tuple[Tables, int], tell_answer: bool) -> None:
    tables, gpus = problem
    best_s = best_by_brute_force(tables, gpus, exact_sum=False)
    if not np.isfinite(best_s):
        with pytest.raises(NoPlanError):
            pruned_milp(as_columns(tables), gpus)
        return
    found = pruned_milp(as_columns(tables), gpus, at_most_s=best_s if tell_answer else np.inf)
    assert_is_allocation(found, tables, gpus, exact_sum=False)
    assert found.latency_s == pytest.approx(best_s, rel=1e-6, abs=1e-9)


def queue_like_tables(gpus: int, seed: int) -> Tables:
    """Hyperbolas that explode near saturation, as real tables do."""
    rng = np.random.default_rng(seed)
    count = np.arange(gpus + 1)
    tables = []
    for smallest in (1, 4, 8):
        load = rng.uniform(0.05, 0.15) * gpus
        service_s = rng.uniform(5.0, 40.0)
        latency_s = np.full(gpus + 1, np.inf)
        usable = (count > load) & (count >= smallest)
        latency_s[usable] = service_s / (1 - load / count[usable])
        tables.append(latency_s)
    return tables


@pytest.mark.parametrize("gpus", [32, 80, 200])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_programs_agree_and_pruning_leaves_little(gpus: int, seed: int) -> None:
    tables = queue_like_tables(gpus, seed)
    written = paper_milp(tables, gpus)
    pruned = pruned_milp(as_columns(tables), gpus)
    assert pruned.latency_s == pytest.approx(written.latency_s, rel=1e-9)
    assert written.columns == 3 * (gpus + 1)
    assert pruned.columns < written.columns / 5
    assert pruned_milp(as_columns(tables), gpus, at_most_s=written.latency_s).latency_s == pruned.latency_s


def test_more_gpus_never_hurt() -> None:
    tables = queue_like_tables(200, seed=3)
    found_s = [pruned_milp(as_columns(tables), gpus).latency_s for gpus in range(60, 200, 7)]
    assert found_s == sorted(found_s, reverse=True)


def test_a_claim_too_good_is_refuted_and_a_claim_too_bad_is_beaten() -> None:
    tables = queue_like_tables(64, seed=4)
    best_s = paper_milp(tables, 64, exact_sum=False).latency_s
    with pytest.raises(NoPlanError, match="reaches"):
        pruned_milp(as_columns(tables), 64, at_most_s=best_s * 0.999)
    assert pruned_milp(as_columns(tables), 64, at_most_s=best_s * 1.5).latency_s == best_s


def test_prune_keeps_a_strict_staircase() -> None:
    counts = np.array([4, 1, 2, 3, 2])
    latency_s = np.array([5.0, np.inf, 9.0, 9.0, 8.0])
    [(kept, kept_s)] = prune([(counts, latency_s)], gpus=4)
    assert kept.tolist() == [4]
    assert kept_s.tolist() == [5.0]
    [(kept, kept_s)] = prune([(counts, latency_s)], gpus=3)
    assert kept.tolist() == [2]
    assert kept_s.tolist() == [8.0]


def test_order_of_columns_does_not_matter() -> None:
    tables = queue_like_tables(40, seed=5)
    shuffle = np.random.default_rng(0).permutation(41)
    mixed = pruned_milp([(shuffle, table[shuffle]) for table in tables], 40)
    assert mixed.gpus == pruned_milp(as_columns(tables), 40).gpus


def test_exact_sum_can_be_the_only_obstacle() -> None:
    even = np.array([np.inf, np.inf, 3.0, np.inf])
    with pytest.raises(NoPlanError, match="exactly 3 GPUs"):
        paper_milp([even], 3)
    assert paper_milp([even], 3, exact_sum=False).gpus == (2,)


def test_pool_too_small_says_what_is_enough() -> None:
    table = np.array([np.inf, np.inf, np.inf, 1.0])
    with pytest.raises(PoolTooSmallError, match="at least 6 GPUs") as caught:
        pruned_milp(as_columns([table, table]), 3)
    assert caught.value.gpus_needed == 6
    with pytest.raises(PoolTooSmallError):
        paper_milp([table, table], 3)


def test_hopeless_stage_is_named() -> None:
    with pytest.raises(NoPlanError, match="stage 2"):
        paper_milp([np.ones(3), np.full(3, np.inf)], 2)


@pytest.mark.parametrize(
    "table",
    [np.array([1.0, np.nan]), np.array([1.0, -1.0]), np.ones(1), np.ones((2, 2))],
    ids=["nan", "neg", "short", "2d"],
)
def test_bad_tables_are_refused(table: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="stage 1"):
        paper_milp([table], 1)


def test_mismatched_columns_are_refused() -> None:
    with pytest.raises(InputError, match="stage 1"):
        pruned_milp([(np.arange(3), np.ones(2))], 2)


def test_no_time_is_no_proof() -> None:
    with pytest.raises(NoPlanError, match=r"in 0 s; raise the time limit"):
        paper_milp(queue_like_tables(300, seed=6), 300, time_limit_s=0.0)


def test_threads_may_solve_at_once_and_beside_other_users_of_highs() -> None:
    other = highspy.Highs()
    other.setOptionValue("output_flag", False)
    other.run()
    tables = queue_like_tables(32, seed=7)
    expected = paper_milp(tables, 32).gpus
    found: list[tuple[int, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(paper_milp(tables, 32).gpus)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pruned_milp(as_columns(queue_like_tables(32, seed=8)), 32)
    assert capfd.readouterr() == ("", "")
