"""Tables for the simulator, fitted to the steps of engines by least squares.

A step of decodes takes a + b * sequences + c * context; one with prompts takes d + e * tokens up to a bend + f * tokens
beyond it + g * sequences that get a token + h * pairs of tokens of one prompt, and its decodes' context. The front end
takes as long as the shortest waits for a step: who comes later than that before a step waits for the one after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.real_engine_client import FloatArray
from benchmarks.real_engine_measuring import Step
from benchmarks.real_engine_servers import KV_CAPACITY_TOKENS, MAX_BATCHED_TOKENS, MAX_NUM_SEQS
from cascadia_fast import _core

BEND_TOKENS = 128
SHORTEST = 5  # percentile


@dataclass(frozen=True)
class StepFit:
    """Costs of steps; seconds."""

    decode_base_s: float
    decode_sequence_s: float
    context_token_s: float
    prompt_base_s: float
    prompt_token_s: float  # up to BEND_TOKENS in the step
    late_token_s: float  # beyond
    sampled_s: float
    pair_s: float
    request_s: float  # front end, from the client to the engine
    decode_steps: int
    decode_scatter: float  # median error of the fit, relative
    prompt_steps: int
    prompt_scatter: float

    def costs(self) -> _core.StepCosts:
        """What the simulator takes."""
        sequences, tokens = np.arange(MAX_NUM_SEQS + 1.0), np.arange(MAX_BATCHED_TOKENS + 1.0)
        late = np.maximum(tokens - BEND_TOKENS, 0)
        return _core.StepCosts.measured(
            decode_step_s=self.decode_base_s + self.decode_sequence_s * sequences,
            prompt_step_s=self.prompt_base_s + self.prompt_token_s * (tokens - late) + self.late_token_s * late,
            sampled_s=self.sampled_s * sequences,
            context_token_s=self.context_token_s,
            prompt_pair_s=self.pair_s,
            request_s=self.request_s,
            kv_capacity_tokens=KV_CAPACITY_TOKENS,
        )


def fit(steps: Sequence[Step]) -> StepFit:
    """Fit all kinds of steps."""
    decode = [step for step in steps if not step.prompts]
    mixed = [step for step in steps if step.prompts and not step.from_idle]
    decode_s = _took_s(decode)
    decode_design = np.array([(1.0, step.decodes, step.context) for step in decode])
    decode_base_s, decode_sequence_s, context_token_s = found = _least_squares(decode_design, decode_s)
    mixed_s = _took_s(mixed) - context_token_s * np.array([step.context for step in mixed])
    mixed_design = _mixed_design(mixed)
    base_s, token_s, late_token_s, sampled_s, pair_s = weights = _least_squares(mixed_design, mixed_s)
    return StepFit(
        decode_base_s=float(decode_base_s),
        decode_sequence_s=float(decode_sequence_s),
        context_token_s=float(context_token_s),
        prompt_base_s=float(base_s),
        prompt_token_s=float(token_s),
        late_token_s=float(late_token_s),
        sampled_s=float(sampled_s),
        pair_s=float(pair_s),
        request_s=float(np.percentile([waited_s for step in mixed for waited_s in step.waited_s], SHORTEST)),
        decode_steps=len(decode),
        decode_scatter=_scatter(decode_design @ found, decode_s),
        prompt_steps=len(mixed),
        prompt_scatter=_scatter(mixed_design @ weights, mixed_s),
    )


def _took_s(steps: Sequence[Step]) -> FloatArray:
    return np.array([step.took_s for step in steps])


def _mixed_design(steps: Sequence[Step]) -> FloatArray:
    rows = []
    for step in steps:
        tokens = step.decodes + sum(step.prompts)
        late = max(tokens - BEND_TOKENS, 0)
        pairs = sum(prompt * prompt / 2 for prompt in step.prompts)
        rows.append((1.0, tokens - late, late, step.decodes + len(step.prompts), pairs))
    return np.array(rows)


def _least_squares(design: FloatArray, seconds: FloatArray) -> FloatArray:
    """Weights that are not negative; a negative one leaves the others to fit alone.

    Errors are absolute: so those of all steps add up to nothing, and the engine is as busy as it was.
    """
    weights, kept = np.zeros(design.shape[1]), np.arange(design.shape[1])
    while True:
        found, *_ = np.linalg.lstsq(design[:, kept], seconds, rcond=None)
        if (found >= 0).all():
            weights[kept] = found
            return weights
        kept = np.delete(kept, found.argmin())


def _scatter(fitted_s: FloatArray, measured_s: FloatArray) -> float:
    return float(np.median(np.abs(measured_s / fitted_s - 1)))
