"""Running HiGHS: options of a proof, Ctrl-C, and refusals as errors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from cascadia_fast.errors import CascadiaError

if TYPE_CHECKING:
    import highspy

# HiGHS stops by default within 1e-4 of the optimum; a proof wants the optimum. The tolerances hold for programs scaled
# so that what is minimised, and what is covered, is about 1.
PROOF_OPTIONS: dict[str, Any] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 1e-9,
    "mip_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
}


def solver(time_limit_s: float, **options: Any) -> highspy.Highs:
    """Return a silent solver with the options of a proof, some of them changed."""
    import highspy  # 0.1 s to import: only when a program is solved

    found = highspy.Highs()  # type: ignore[no-untyped-call]
    for name, value in (PROOF_OPTIONS | {"time_limit": float(time_limit_s)} | options).items():
        check(found.setOptionValue(name, value), f"option {name}")
    return found


def run(program: highspy.Highs, interruptible: bool) -> None:
    """Solve; a long solve leaves this thread free to see Ctrl-C, and then stops at HiGHS's next callback."""
    if not interruptible:
        check(program.run(), "run")
        return
    program.HandleUserInterrupt = True
    with ThreadPoolExecutor(1) as pool:
        solving = pool.submit(program.run)
        try:
            while not wait([solving], timeout=0.1).done:
                pass
        except KeyboardInterrupt:
            program.cancelSolve()  # type: ignore[no-untyped-call]
            raise
    check(solving.result(), "run")


def check(status: highspy.HighsStatus, what: str) -> None:
    """Raise where HiGHS reports an error."""
    import highspy

    if status == highspy.HighsStatus.kError:
        raise CascadiaError(f"HiGHS refused {what}; this is a bug, please report it with the problem file")
