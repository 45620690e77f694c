"""What a comparison assumes of systems whose routers, scorers and verifications it simulates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cascadia_fast.summary_units import number

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan


def assumption_of(plan: Plan) -> str | None:
    """Return what is assumed of a plan's routing, as a clause; None where the judge decides, or nobody."""
    signal = plan.routing.signal
    if signal is None:
        return None
    auc = number(signal.auc)
    if signal.kind == "win_probability":
        return (
            f"of two requests its router tells, before any answer, which gains more from the largest model, rightly "
            f"with probability {auc} (AUC), in no time and at no cost"
        )
    if signal.kind == "learned_score":
        return (
            f"its scorer orders two answers of unequal quality rightly with probability {auc} (AUC), in no time and at "
            "no cost"
        )
    return (
        f"{signal.votes} votes of the first model on its own answers order them rightly with probability {auc} "
        "(AUC), and cost the tokens they take"
    )
