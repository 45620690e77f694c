"""Comparisons run: in one process or several, stopped in every way, and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_cases import ALTERNATING, BROKEN, HOPELESS, KILLED, OURS, PlainSystem, best, example, setup

from cascadia_fast.baselines.case import Case
from cascadia_fast.blueprint import Plan
from cascadia_fast.comparison.running import compare
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.comparison.store import CELLS
from cascadia_fast.comparison.workers import Defect
from cascadia_fast.errors import InputError

SCRIPT = """\
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from comparison_cases import ALTERNATING, OURS, setup
from cascadia_fast.comparison.running import compare

if __name__ == "__main__":
    told = lambda done, before, total: print(done, before, total, flush=True)
    try:
        compare(setup(OURS, ALTERNATING, seeds={seeds}), out=Path({out!r}), jobs={jobs}, progress=told)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


def without_timings(results: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how it was run."""
    plain: dict[str, Any] = _stripped({name: value for name, value in results.items() if name != "made_by"})
    return plain


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _stripped(one) for name, one in value.items() if name not in ("seconds", "plan_seconds")}
    return [_stripped(one) for one in value] if isinstance(value, list) else value


def started(tmp_path: Path, *, jobs: int, seeds: int = 40, **settings: Any) -> subprocess.Popen[str]:
    """A comparison in a process group of its own, as a shell starts it."""
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(__file__).parent), seeds=seeds, out=str(tmp_path / "out"), jobs=jobs)
    )
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **settings,
    )


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end_s = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """Processes of a group that are still there, but for those that nobody has waited for yet."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def kept(tmp_path: Path) -> int:
    path = tmp_path / "out" / CELLS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    """The second problem exists in memory only, and goes to the processes all the same."""
    problem = example()
    halved = problem.replace(workload=problem.workload.replace(requests=problem.workload.requests.select(range(500))))
    cases = tuple(
        CaseSetup.of(name, one, floors=(50.0,), rates_per_s=(30.0,))
        for name, one in (("example", problem), ("memory", halved))
    )
    compared = Setup(cases, (OURS, ALTERNATING, HOPELESS), seeds=(0, 1), requests=1000)  # type: ignore[arg-type]
    alone, together = (compare(compared, jobs=jobs) for jobs in (1, 2))
    assert without_timings(alone) == without_timings(together)


def test_what_is_kept_is_not_tried_again(tmp_path: Path) -> None:
    calls: list[Case] = []

    def counted(case: Case) -> Plan:
        calls.append(case)
        return case.planner().plan()

    compared = setup(PlainSystem("ours", counted, kind="ours"), seeds=1)
    whole = compare(compared, jobs=1)
    cells = len(whole["cells"])
    assert len(calls) == cells
    told: list[tuple[int, int, int]] = []
    first = compare(compared, out=tmp_path, jobs=1, progress=lambda *numbers: told.append(numbers))
    assert told[0] == (0, 0, cells)
    assert told[-1] == (cells, 0, cells)
    (tmp_path / CELLS).write_bytes(b"".join((tmp_path / CELLS).read_bytes().splitlines(keepends=True)[:-2])[:-9])
    calls.clear()
    told.clear()
    second = compare(compared, out=tmp_path, jobs=1, progress=lambda *numbers: told.append(numbers))
    assert len(calls) == 3  # two lines that are gone, and a torn one
    assert told[0] == (cells - 3, cells - 3, cells)
    assert second["made_by"]["resumed"] == cells - 3
    calls.clear()
    third = compare(compared, out=tmp_path, jobs=1)
    assert calls == []
    assert without_timings(whole) == without_timings(first) == without_timings(second) == without_timings(third)
    compare(compared, out=tmp_path, jobs=1, fresh=True)
    assert len(calls) == cells


def test_other_floors_add_to_what_is_kept(tmp_path: Path) -> None:
    compare(setup(OURS, seeds=1, floors=(50.0,)), out=tmp_path, jobs=1)
    before = kept(tmp_path.parent) or (tmp_path / CELLS).read_bytes().count(b"\n")
    both = compare(setup(OURS, seeds=1, floors=(50.0, 53.0)), out=tmp_path, jobs=1)
    assert both["made_by"]["resumed"] == before
    assert compare(setup(OURS, seeds=1, floors=(50.0,)), out=tmp_path, jobs=1)["made_by"]["resumed"] == before


def test_cases_that_differ_do_not_share_trials(tmp_path: Path) -> None:
    problem = example()
    cases = tuple(
        CaseSetup.of(name, one, floors=(50.0,), rates_per_s=(30.0,))
        for name, one in (("half", problem.replace(gpus=16)), ("whole", problem))
    )
    results = compare(Setup(cases, (OURS,), seeds=(0,), requests=2000), out=tmp_path, jobs=1)  # type: ignore[arg-type]
    p95_s = {cell["case"]: cell["measured"]["p95_s"] for cell in results["cells"] if cell["purpose"] == "main"}
    assert p95_s["half"] > p95_s["whole"]


def test_a_mistake_in_a_system_ends_the_comparison_with_its_traceback(tmp_path: Path) -> None:
    for jobs in (1, 2):
        with pytest.raises(Defect, match="a defect in system broken at case 'example', q 76, .* requests/s") as caught:
            compare(setup(OURS, BROKEN, seeds=4), jobs=jobs)
        assert caught.value.details.rstrip().endswith("ZeroDivisionError: a mistake of mine")


def test_a_process_that_is_killed_ends_the_comparison_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stopped by signal 9, perhaps for want of memory; use fewer --jobs"):
        compare(setup(OURS, KILLED, seeds=4), out=tmp_path, jobs=2)
    # What came before is kept, and the folder is free.
    compare(setup(OURS, seeds=1), out=tmp_path, jobs=1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_is_done_and_leaves_nobody_behind(tmp_path: Path, jobs: int) -> None:
    process = started(tmp_path, jobs=jobs)
    wait_for(lambda: kept(tmp_path) >= 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
    out, errors = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped"
    assert errors == ""
    wait_for(lambda: not members(process.pid), 10)
    assert kept(tmp_path) >= 5


def test_ctrl_c_while_processes_start_leaves_no_traceback(tmp_path: Path) -> None:
    process = started(tmp_path, jobs=2)
    assert process.stdout is not None
    process.stdout.readline()  # told once before the first process starts
    time.sleep(0.15)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "stopped"
    assert errors == ""
    wait_for(lambda: not members(process.pid), 10)


def test_kill_9_leaves_nobody_behind_and_the_next_run_goes_on(tmp_path: Path) -> None:
    process = started(tmp_path, jobs=2)
    wait_for(lambda: kept(tmp_path) >= 5)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not members(process.pid), 20)
    before = kept(tmp_path)
    again = started(tmp_path, jobs=1, seeds=1)
    out, errors = again.communicate(timeout=120)
    assert errors == ""
    done, resumed, total = map(int, out.splitlines()[0].split())
    assert done == resumed > 0
    assert kept(tmp_path) >= before
    assert out.splitlines()[-1].split()[0] == str(total)


def test_two_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    process = started(tmp_path, jobs=1)
    try:
        wait_for(lambda: kept(tmp_path) >= 1)
        with pytest.raises(InputError, match="in use by another comparison"):
            compare(setup(OURS), out=tmp_path / "out", jobs=1)
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.parametrize("jobs", [0, -1, 1025])
def test_jobs_are_checked(jobs: int) -> None:
    with pytest.raises(InputError, match="jobs is"):
        compare(setup(OURS), jobs=jobs)


def test_one_independent_request_cannot_be_compared_on() -> None:
    problem = example()
    one = problem.replace(workload=problem.workload.replace(requests=problem.workload.requests.select([3])))
    case = CaseSetup.of("one", one, floors=(50.0,), rates_per_s=(30.0,))
    with pytest.raises(InputError, match="one independent request"):
        compare(Setup((case,), (PlainSystem("ours", best, kind="ours"),), seeds=(0,), requests=500), jobs=1)  # type: ignore[arg-type]
