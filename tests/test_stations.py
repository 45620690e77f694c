"""The judge of a problem: what kind it is, and the calls that a hosted one gets."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cascadia_fast.errors import CascadiaWarning, InputError, UnsupportedError
from cascadia_fast.problem import Problem
from cascadia_fast.routing import routing_grid


def hosted() -> Problem:
    return Problem.example().replace(
        judge_latency_s=0.0, judge_model="llama-3.1-8b", judge_weights="fp8", judge_instruction_tokens=150
    )


def test_a_hosted_judge_is_a_model() -> None:
    judge = hosted().judge
    assert (judge.kind, judge.latency_s, judge.usd_per_call, judge.output_tokens) == ("hosted", 0, 0, 16)
    assert judge.hosted is not None
    assert judge.model is not None
    assert (judge.hosted.name, judge.hosted.model, judge.hosted.weights) == ("llama-3.1-8b", judge.model, "fp8")
    assert judge.description == "hosted judge llama-3.1-8b in fp8 with simulated scores (AUC 0.85, seed 0)"
    assert Problem.example().judge.hosted is None
    native = hosted().replace(judge_weights=None).judge
    assert native.weights == "bf16"


def test_an_unknown_format_of_the_judges_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"judge\.model 'own\.json' .* 'quip'.*set judge\.weights to one of"):
        _published_in("quip", tmp_path)
    problem = _published_in("fbgemm_fp8", tmp_path)
    assert problem.judge.weights == "fp8"
    (tmp_path / "requests.csv").write_text("")
    assert set(problem.input_hashes()) == {"own.json", "requests.csv"}


def _published_in(method: str, folder: Path) -> Problem:
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 40}
    (folder / "own.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    fields = {
        "cascade": [{"model": "llama-3.1-8b"}],
        "cluster": [{"gpu": "h100", "nodes": 1}],
        "workload": {"requests": "requests.csv", "rate_per_s": 1},
        "judge": {"model": "own.json"},
        "goal": {"q_min": 1},
    }
    return Problem.from_dict(fields, folder)


def test_calls_longer_than_the_judge_takes_are_counted() -> None:
    problem = hosted()
    requests = problem.workload.requests
    calls = 150 + 16 + (requests.input_tokens + requests.output_tokens)[:2].max(axis=0)
    assert calls.max() < 131_072
    # One token more in its instructions than the longest call leaves room for.
    room = int(131_072 - np.ceil(calls.max()) + 150)
    with pytest.warns(CascadiaWarning, match=r"1 of 2,840 requests make a judge call longer than the 131,072 tokens"):
        _ = problem.replace(judge_instruction_tokens=room + 1).workload
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = problem.replace(judge_instruction_tokens=room).workload


def test_calls_read_instructions_prompts_and_answers_of_every_model() -> None:
    cells = [
        SimpleNamespace(tokens_in=np.array([10.0, 20.0]), tokens_out=np.array([1.0, 2.0])),
        SimpleNamespace(tokens_in=np.array([30.0]), tokens_out=np.array([4.0])),
    ]
    tokens_in, tokens_out, spread = hosted().judge.cells(cells)
    assert tokens_in.tolist() == [161, 172, 184]
    assert tokens_out.tolist() == [16, 16, 16]
    assert spread.tolist() == [0, 0, 0]


def test_cells_of_calls_have_the_mean_of_the_calls() -> None:
    problem = hosted()
    requests = problem.workload.requests
    grid = routing_grid(requests)
    tokens_in, _, _ = problem.judge.cells(grid.cells)
    start = 0
    for stage, cells in enumerate(grid.cells):
        share = np.bincount(cells.cell_of, requests.weight) / requests.weight.sum()
        mean = float(share @ tokens_in[start : start + share.size])
        exact = problem.judge.prompt_tokens(requests.input_tokens[stage], requests.output_tokens[stage])
        assert mean == pytest.approx(float(np.average(exact, weights=requests.weight)))
        start += share.size
    assert start == tokens_in.size


def test_a_judge_of_an_unknown_model_is_named() -> None:
    with pytest.raises(InputError, match=r"judge\.model: unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'"):
        hosted().replace(judge_model="lama-3.1-8b")
