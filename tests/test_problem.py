from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadia_fast.errors import CascadiaWarning, InputError, UnsupportedError
from cascadia_fast.problem import Problem
from cascadia_fast.profile import Profile
from cascadia_fast.workload import Arrivals, Workload

REQUESTS = """request,model,input_tokens,output_tokens,score,quality
x,small,10,20,5,40
y,small,11,21,6,50
x,large,12,22,7,60
y,large,13,23,8,70
"""


@pytest.fixture
def base_dir(tmp_path: Path) -> Path:
    (tmp_path / "requests.csv").write_text(REQUESTS)
    (tmp_path / "trace.csv").write_text("arrival_s\n" + "\n".join(str(second) for second in range(300)) + "\n")
    return tmp_path


def fields() -> dict[str, Any]:
    return {
        "cascade": [
            {"model": "llama-3.1-8b", "name_in_requests": "small"},
            {"model": "llama-3.1-405b", "weights": "fp8", "kv_dtype": "fp8", "name_in_requests": "large"},
        ],
        "cluster": [{"gpu": "h100-sxm-80gb", "nodes": 4, "gpus_per_node": 8}],
        "workload": {"requests": "requests.csv", "rate_per_s": 2},
        "judge": {"latency_s": 0.5},
        "goal": {"q_min": 60},
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """The fields with one changed, added, or (value ...) removed; `path` such as cascade.1.model."""
    root = copy.deepcopy(fields())
    node: Any = root
    *parts, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parts:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return root


def test_fields_become_attributes(base_dir: Path) -> None:
    problem = Problem.from_dict(fields(), base_dir)
    small, large = problem.stages
    assert (small.name, small.weights, small.kv_dtype) == ("llama-3.1-8b", "bf16", "bf16")
    assert (large.name, large.weights, large.kv_dtype) == ("llama-3.1-405b", "fp8", "fp8")
    assert large.model.architecture.layers == 126
    assert (problem.gpu.name, problem.gpus, problem.gpus_per_node) == ("h100-sxm-80gb", 32, 8)
    assert problem.price_usd_per_hour == problem.gpu.price_usd_per_hour
    assert (problem.judge.kind, problem.judge.latency_s) == ("external", 0.5)
    assert (problem.goal.q_min, problem.goal.objective, problem.goal.max_utilization) == (60, "max_stage_p95", 0.9)
    assert (problem.goal.paper_strict, problem.goal.method) == (False, "exact")
    assert (problem.max_num_seqs, problem.max_batched_tokens, problem.memory_utilization) == (256, 8192, 0.9)
    workload = problem.workload
    assert workload.requests.quality.tolist() == [[40, 50], [60, 70]]
    assert (workload.rate_per_s, workload.cv, workload.arrivals.times_s) == (2, 1, None)
    assert problem.workload is workload


def test_weights_of_the_requests_come_from_their_column(base_dir: Path) -> None:
    weights = ["share", "3", "1", "3", "1"]
    rows = [f"{row},{weight}" for row, weight in zip(REQUESTS.split(), weights, strict=True)]
    (base_dir / "requests.csv").write_text("\n".join(rows) + "\n")
    problem = Problem.from_dict(changed("workload.columns.weight", "share"), base_dir)
    assert problem.workload.requests.weight.tolist() == [1.5, 0.5]
    assert problem.replace(q_min=50).workload.requests is problem.workload.requests
    blown_up = changed("workload.columns.weight", "share")
    blown_up["workload"]["bootstrap"] = {"size": 4000}
    drawn = Problem.from_dict(blown_up, base_dir).workload.requests
    assert drawn.weight.tolist() == [1] * 4000
    assert (drawn.request_ids == "x").mean() == pytest.approx(0.75, abs=0.03)


def test_read_takes_paths_relative_to_the_file(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base_dir / "Übung 漢"
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 100, "torch_dtype": "bfloat16"}
    config |= {"max_position_embeddings": 4096}
    (folder / "mein modell.json").write_text(json.dumps(config))
    text = """
cascade:
  - {model: mein modell.json, name_in_requests: small}
cluster: [{gpu: h100, gpus: 4}]
workload: {requests: ../requests.csv, rate_per_s: 2}
goal: {q_min: 40}
"""
    (folder / "problem.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir("/")
    problem = Problem.read(folder / "problem.yaml")
    assert problem.stages[0].name == "mein modell"
    assert problem.workload.requests.size == 2
    hashes = problem.input_hashes()
    assert set(hashes) == {"problem.yaml", "mein modell.json", "../requests.csv"}
    for name, digest in hashes.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


SENTENCES = [
    ("cascade.1.wieghts", "fp8", "unknown field 'wieghts' in cascade[1]; did you mean 'weights'?"),
    ("workload.columns.scroe", "x", "unknown field 'scroe' in workload.columns; did you mean 'score'?"),
    ("q_min", 80, "unknown field 'q_min' at the top level; it belongs in goal"),
    ("goal.gpu", "h100", "unknown field 'gpu' in goal; it belongs in cluster[…]"),
    ("goal.engine", {}, "unknown field 'engine' in goal; it belongs at the top level"),
    ("goal.zzz", 1, "unknown field 'zzz' in goal; known are q_min, q_confidence, objective"),
    ("cascade.0.modle", "x", "unknown field 'modle' in cascade[0]; did you mean 'model'?"),
    ("goal.q_min", ..., "goal.q_min is missing; add it"),
    ("cascade", ..., "cascade is missing; add it"),
    ("cascade", [], "cascade is []; it must be a list of at least 1"),
    ("cascade", "llama", "cascade[0] is 'llama'; it must be a group of named fields"),
    ("cluster", {"gpu": "h100"}, "cluster is {'gpu': 'h100'}; it must be a list"),
    ("engine", None, "engine is empty; it must be a group of named fields"),
    ("cascade.0.model", "llama-3.1-9b", "cascade[0].model: unknown model 'llama-3.1-9b'; did you mean"),
    ("cascade.0.model", "no/config.json", "cascade[0].model: model config"),
    ("cascade.0.weights", "fp9", "cascade[0].weights is 'fp9'; it must be one of 'bf16', 'fp8'"),
    ("cascade.0.name_in_requests", "large", "cascade[1] has the name_in_requests 'large' of cascade[0]"),
    ("cluster.0.gpu", "h1000", "cluster[0].gpu: unknown GPU 'h1000'; did you mean 'h100'?"),
    ("cluster.0.nodes", "four", "cluster[0].nodes is 'four'; it must be a whole number"),
    ("cluster.0.nodes", 2.5, "cluster[0].nodes is 2.5; it must be a whole number"),
    ("cluster.0.nodes", True, "cluster[0].nodes is True; it must be a whole number"),
    ("cluster.0.nodes", 0, "cluster[0].nodes is 0; it must be at least 1"),
    ("cluster.0.nodes", ..., "cluster[0] has neither nodes nor gpus"),
    ("cluster.0.gpus", 20, "cluster[0] has both nodes and gpus"),
    ("cluster.0.price_usd_per_hour", float("inf"), "cluster[0].price_usd_per_hour is inf; it must be a finite number"),
    ("workload.rate_per_s", "1e3", "workload.rate_per_s is '1e3'; it must be a number"),
    ("workload.rate_per_s", 0, "workload.rate_per_s is 0; it must be at least 1e-09"),
    ("workload.rate_per_s", 2e9, "workload.rate_per_s is 2000000000.0; it must be at most 1,000,000,000"),
    ("goal", None, "goal is empty; it must be a group of named fields"),
    ("cluster.0.nodes", 2_000_000, "cluster[0].nodes is 2000000; it must be at most 1,000,000"),
    ("workload.rate_per_s", ..., "workload has neither arrivals nor rate_per_s; add arrivals"),
    ("workload.rate_from", "p95", "workload.rate_from is 'p95'; it must be one of 'mean', 'p95_1min' or 'peak_1min'"),
    ("workload.rate_from", "peak_1min", "workload has rate_from: peak_1min but no arrivals"),
    ("workload.lengths", "trace", "workload has lengths: trace but no arrivals"),
    ("workload.headroom", 0.9, "workload.headroom is 0.9; it must be at least 1"),
    ("judge.simulated_auc", 0.5, "judge.simulated_auc is 0.5; it must be above 0.5"),
    ("judge.latency_s", -1, "judge.latency_s is -1; it must be at least 0"),
    ("goal.q_min", float("nan"), "goal.q_min is nan; it must be a finite number"),
    ("goal.q_min", 101, "goal.q_min is 101; it must be at most 100"),
    ("goal.max_utilization", 1.0, "goal.max_utilization is 1.0; it must be below 1"),
    (
        "goal.method",
        "exakt",
        "goal.method is 'exakt'; it must be one of 'exact' or 'alternating'; did you mean 'exact'?",
    ),
    ("goal.objective", "max_stage_p59", "'min_cost', 'max_rate' or 'min_gpus'; did you mean 'max_stage_p95'?"),
    ("goal.slo_s", 0, "goal.slo_s is 0; it must be above 0"),
    ("goal.slo_metric", "p95", "goal.slo_metric is 'p95'; it must be one of 'max_stage_p95', 'end_to_end_p95'"),
    ("goal.q_confidence", 0.5, "goal.q_confidence is 0.5; it must be above 0.5"),
    ("goal.q_confidence", 95, "goal.q_confidence is 95; it must be at most 0.999"),
    ("goal.budget_usd_per_hour", 0.0, "goal.budget_usd_per_hour is 0.0; it must be above 0"),
    ("goal.survive", "rack", "goal.survive is 'rack'; it must be one of 'none', 'replica' or 'node'"),
    ("goal.skip_models", 1, "goal.skip_models is 1; it must be true or false"),
    ("goal.time_limit_s", 0, "goal.time_limit_s is 0; it must be above 0"),
    ("cascade.0.min_replicas", -1, "cascade[0].min_replicas is -1; it must be at least 0"),
    ("cascade.0.max_replicas", 0, "cascade[0].max_replicas is 0; it must be at least 1"),
    ("cascade.0.tp", 0, "cascade[0].tp is 0; it must be at least 1"),
    ("cascade.0.pools", [], "cascade[0].pools is []; it must be a list of at least 1 entry"),
    ("cluster.0.reserved", -1, "cluster[0].reserved is -1; it must be at least 0"),
    ("cluster.0.link_gb_per_s", 0, "cluster[0].link_gb_per_s is 0; it must be above 0"),
    ("cluster.0.tp_across_nodes", "no", "cluster[0].tp_across_nodes is 'no'; it must be true or false"),
    ("judge.model", "llama-9.9-8b", "judge.model: unknown model 'llama-9.9-8b'; did you mean"),
    ("judge.output_tokens", 0, "judge.output_tokens is 0; it must be at least 1"),
    ("goal.paper_strict", "yes", "goal.paper_strict is 'yes'; it must be true or false"),
]


@pytest.mark.parametrize(("path", "value", "says"), SENTENCES)
def test_bad_fields_get_a_sentence(base_dir: Path, path: str, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        Problem.from_dict(changed(path, value), base_dir)
    assert str(caught.value).startswith("the problem: ")
    assert "\n" not in str(caught.value)


CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 40,
}


def test_a_weight_format_that_cannot_be_planned_is_named(base_dir: Path) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "quip"}}
    (base_dir / "odd.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"cascade\[0\]\.model 'odd\.json' is published in .* 'quip'.*bf16"):
        Problem.from_dict(changed("cascade.0.model", "odd.json"), base_dir)
    fixed = changed("cascade.0.model", "odd.json")
    fixed["cascade"][0]["weights"] = "int4"
    assert Problem.from_dict(fixed, base_dir).stages[0].weights == "int4"


def test_requests_longer_than_a_model_takes_are_counted(base_dir: Path) -> None:
    (base_dir / "short.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 31}))
    problem = Problem.from_dict(changed("cascade.0.model", "short.json"), base_dir)
    with pytest.warns(CascadiaWarning, match=r"1 of 2 requests are longer.* 31 tokens that short takes") as caught:
        _ = problem.workload
    assert len([item for item in caught if "longer" in str(item.message)]) == 1
    (base_dir / "short.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 32}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = Problem.from_dict(changed("cascade.0.model", "short.json"), base_dir).workload


@pytest.mark.parametrize("place", ["workload.requests", "workload.arrivals", "cascade.0.model"])
def test_names_too_long_for_the_file_system(base_dir: Path, place: str) -> None:
    name = "x" * 300 + (".json" if "model" in place else ".csv")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        _ = Problem.from_dict(changed(place, name), base_dir).workload
    with pytest.raises(InputError, match="unknown model"):
        Problem.from_dict(changed("cascade.0.model", "x" * 300), base_dir)


def test_home_folders_of_nobody_are_no_crash(base_dir: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        _ = Problem.from_dict(changed("workload.requests", "~no-such-user/x.csv"), base_dir).workload


def test_a_bad_trace_is_named_once(base_dir: Path) -> None:
    (base_dir / "trace.csv").write_text("")
    problem = Problem.from_dict(changed("workload.arrivals", "trace.csv"), base_dir)
    with pytest.raises(InputError, match="is empty") as caught:
        _ = problem.workload
    assert str(caught.value).count("trace.csv") == 1


def test_input_paths(base_dir: Path) -> None:
    assert Problem.from_dict(fields(), base_dir).input_paths() == (base_dir / "requests.csv",)
    example = [path.name for path in Problem.example().input_paths()]
    assert example == ["problem.yaml", "requests.csv.gz", "arrivals.csv.gz"]


BAD_YAML = [
    (b"", "is empty"),
    (b"# nothing\n", "is empty"),
    (b"just words\n", "holds a text; it must hold named fields"),
    (b"- a\n- b\n", "holds a list; it must hold named fields"),
    (b"cascade: [\n", "is not YAML in line 2"),
    (b"goal: {q_min: 1}\ngoal: {q_min: 2}\n", "field 'goal' in line 2 of .* is given twice"),
    (b"goal: {q_min: 1, q_min: 2}\n", "field 'q_min' in line 1 of .* is given twice"),
    (b"? [a]\n: b\n", "a field in line 1 of .* has no plain name"),
    (b"7: x\ncascade: []\n", "unknown field '7' at the top level; known are cascade"),
    (b"goal: !!python/object:os.system x\n", "is not YAML in line 1"),
    (b"goal: \xff\n", "is not UTF-8"),
    (b"goal: \x00\n", "is not YAML"),
    (b"[" * 100_000, "nested too deeply"),
    (b"goal: 2024-99-99\n", "impossible date"),
    (b"# " + b"x" * 1_000_000, "is larger than 1,000,000 bytes"),
]


@pytest.mark.parametrize(("content", "says"), BAD_YAML)
def test_bad_yaml_gets_a_sentence(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        Problem.read(tmp_path / "p.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_yaml_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)]
    (tmp_path / "p.yaml").write_text("\n".join([*lines, "cascade: *a11"]))
    with pytest.raises(InputError, match="unknown field 'a0'") as caught:
        Problem.read(tmp_path / "p.yaml")
    assert len(str(caught.value)) < 500


def test_missing_problem_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Problem.read(tmp_path / "p.yaml")
    with pytest.raises(InputError, match="is a directory"):
        Problem.read(tmp_path)


def test_one_model_in_two_precisions(base_dir: Path) -> None:
    cascade = [
        {"model": "llama-3.1-70b", "weights": w, "name_in_requests": n}
        for w, n in (("int4", "small"), ("bf16", "large"))
    ]
    problem = Problem.from_dict(changed("cascade", cascade), base_dir)
    assert [stage.name for stage in problem.stages] == ["llama-3.1-70b (int4)", "llama-3.1-70b (bf16)"]
    cascade[1]["weights"] = "int4"
    with pytest.raises(InputError, match=re.escape("cascade[1] has the name 'llama-3.1-70b (int4)' of cascade[0]")):
        Problem.from_dict(changed("cascade", cascade), base_dir)


def test_single_stage_cascade_needs_no_score(base_dir: Path) -> None:
    (base_dir / "requests.csv").write_text("request,model,input_tokens,output_tokens,quality\nx,large,1,2,50\n")
    problem = Problem.from_dict(changed("cascade", fields()["cascade"][1:]), base_dir)
    assert problem.workload.requests.quality.tolist() == [[50]]


def test_arrivals_rate_and_headroom(base_dir: Path) -> None:
    with_trace = changed("workload", {"requests": "requests.csv", "arrivals": "trace.csv", "headroom": 1.5})
    assert Problem.from_dict(with_trace, base_dir).workload.rate_per_s == pytest.approx(1.5)
    with_trace["workload"] |= {"rate_per_s": 4, "rate_from": "peak_1min"}
    workload = Problem.from_dict(with_trace, base_dir).workload
    assert workload.arrivals.rate_per_s == 4
    assert workload.rate_per_s == pytest.approx(4 * 1.5, rel=0.02)
    assert workload.arrivals.duration_s == pytest.approx(299 / 4)
    with_trace["workload"]["cv"] = 2
    with pytest.raises(InputError, match="both arrivals and cv"):
        Problem.from_dict(with_trace, base_dir)
    (base_dir / "trace.csv").write_text("arrival_s\n5\n")
    problem = Problem.from_dict(changed("workload.arrivals", "trace.csv"), base_dir)
    with pytest.raises(InputError, match=r"trace\.csv: a trace of 1 arrival"):
        _ = problem.workload


def test_replace_checks_and_shares(base_dir: Path) -> None:
    problem = Problem.from_dict(fields(), base_dir)
    requests = problem.workload.requests
    (base_dir / "requests.csv").unlink()
    other = problem.replace(gpus=20, q_min=70, max_utilization=0.8, method="alternating", paper_strict=True)
    assert (other.gpus, other.gpus_per_node, other.price_usd_per_hour) == (20, 8, problem.price_usd_per_hour)
    assert (other.goal.q_min, other.goal.max_utilization) == (70, 0.8)
    assert (other.goal.method, other.goal.paper_strict) == ("alternating", True)
    assert (problem.gpus, problem.goal.q_min) == (32, 60)
    assert other.workload.requests is requests
    faster = other.replace(rate_per_s=5, headroom=2.0, price_usd_per_hour=1.0)
    assert (faster.workload.rate_per_s, faster.gpus, faster.price_usd_per_hour) == (10, 20, 1)
    assert faster.workload.requests is requests


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpus": 0}, "cluster[0].gpus is 0; it must be at least 1"),
        ({"q_min": float("nan")}, "goal.q_min is nan"),
        ({"rate_per_s": -1.0}, "workload.rate_per_s is -1.0"),
        ({"objective": "max_stage"}, "did you mean 'max_stage_p95'"),
        (
            {"models": {"llama-3.1-7b": {"tp": 2}}},
            "models names 'llama-3.1-7b', which the problem does not have; did you",
        ),
        (
            {"pools": {"h100": {"gpus": 2}}},
            "pools names 'h100', which the problem does not have; known are h100-sxm-80gb",
        ),
        ({"pools": {"h100-sxm-80gb": 2}}, "pools is {'h100-sxm-80gb': 2}; give the fields to replace by name"),
        ({"pools": {"h100-sxm-80gb": {"gpu_s": 2}}}, "unknown field 'gpu_s' in cluster[0]; did you mean 'gpus'?"),
        ({"qmin": 1}, "a problem has no field 'qmin' to replace; did you mean 'q_min'?"),
    ],
)
def test_replace_names_bad_changes(base_dir: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Problem.from_dict(fields(), base_dir).replace(**change)


def test_replace_workload(base_dir: Path) -> None:
    problem = Problem.from_dict(fields(), base_dir)
    mine = Workload.build(problem.workload.requests.bootstrap(0, 100), Arrivals.from_rate(3), headroom=1.2)
    other = problem.replace(workload=mine)
    assert other.workload is mine
    assert other.replace(q_min=65).workload is mine
    assert other.replace(rate_per_s=5).workload.rate_per_s == pytest.approx(6)
    assert other.input_hashes() == {"workload": mine.content_hash()}
    stranger = mine.replace(requests=Problem.example().workload.requests)
    with pytest.raises(
        InputError, match="the workload scores the models Llama-3.1-8B, .*; the cascade has small, large"
    ):
        problem.replace(workload=stranger)


def test_simulated_judge_is_labelled_and_comes_after_the_bootstrap(base_dir: Path) -> None:
    simulated = fields() | {"judge": {"simulated_auc": 0.85, "seed": 3, "latency_s": 0.2}}
    simulated["workload"]["bootstrap"] = {"size": 500, "seed": 1}
    problem = Problem.from_dict(simulated, base_dir)
    assert problem.judge.kind == "simulated"
    assert problem.judge.description == "simulated judge (AUC 0.85, seed 3), 0.2 s per call"
    requests = problem.workload.requests
    assert requests.size == 500
    assert len(np.unique(requests.score)) == 1000
    assert len(np.unique(requests.quality)) == 4
    assert requests.effective_size <= 2
    other = problem.replace(judge_seed=4).workload.requests
    assert np.array_equal(other.quality, requests.quality)
    assert not np.array_equal(other.score, requests.score)


def test_lengths_of_the_trace(base_dir: Path) -> None:
    lines = [f"{second},{second + 1},{2 * second + 2}" for second in range(300)]
    (base_dir / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]) + "\n")
    traced = changed("workload", {"requests": "requests.csv", "arrivals": "trace.csv", "lengths": "trace"})
    requests = Problem.from_dict(traced, base_dir).workload.requests
    assert requests.size == 300
    assert sorted(requests.input_tokens[0]) == list(range(1, 301))
    assert requests.quality.mean(axis=1).tolist() == [45, 65]


def test_deepseek_case(repository: Path) -> None:
    problem = Problem.read(repository / "benchmarks/cases/deepseek.yaml")
    assert [stage.weights for stage in problem.stages] == ["bf16", "bf16", "int4"]
    assert (problem.gpus, problem.goal.q_min, problem.workload.rate_per_s) == (32, 80, 1.5)
    requests = problem.workload.requests
    assert requests.size == 51
    # The published means of the second judge and of the output lengths.
    assert requests.quality.mean(axis=1) == pytest.approx([39.0, 70.7, 84.8], abs=0.1)
    assert requests.score.mean(axis=1) == pytest.approx([41.9, 64.2, 73.2], abs=0.1)
    assert requests.output_tokens.mean(axis=1) == pytest.approx([2312, 1860, 4020], abs=1)
    assert problem.workload.arrivals.cv == pytest.approx(1.09, abs=0.01)


def test_llama_case_has_continuous_scores(repository: Path) -> None:
    problem = Problem.read(repository / "benchmarks/cases/llama20k.yaml")
    requests = problem.workload.requests
    assert requests.size == 20_000
    assert len(np.unique(requests.score)) > 59_000
    assert requests.effective_size < 2_840


def test_example_is_quiet_and_labelled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = Problem.example()
        workload = problem.workload
    assert problem.judge.kind == "simulated"
    assert workload.requests.size == 2_840
    assert workload.requests.quality.mean(axis=1) == pytest.approx([55.88, 72.78, 77.75], abs=0.01)
    assert workload.arrivals.count == 19_366
    assert set(problem.input_hashes()) == {"problem.yaml", "arrivals.csv.gz", "requests.csv.gz"}


def test_a_profile_of_ones_own_is_used_and_hashed(base_dir: Path) -> None:
    own = dataclasses.replace(Profile.shipped(), name="own")
    own.write(base_dir / "own.json")
    problem = Problem.from_dict(changed("engine", {"name": "sglang", "profile": "own.json"}), base_dir)
    assert (problem.engine, problem.profile) == ("sglang", own)
    assert problem.input_hashes()["own.json"] == hashlib.sha256(own.to_json()).hexdigest()
    assert Problem.from_dict(fields(), base_dir).profile == Profile.shipped()


@pytest.mark.parametrize(
    ("gpu", "says"), [("a100-sxm-80gb", "not on a100-sxm-80gb"), ("h100-sxm-80gb", "not with sglang")]
)
def test_a_profile_for_something_else_is_an_error(base_dir: Path, gpu: str, says: str) -> None:
    shipped = Profile.shipped()
    vllm = tuple(group for group in shipped.measured if group.engine == "vllm")
    dataclasses.replace(shipped, measured=vllm).write(base_dir / "own.json")
    given = changed("engine", {"name": "sglang", "profile": "own.json"})
    given["cluster"][0]["gpu"] = gpu
    with pytest.raises(InputError, match=f"the problem: engine.profile 'own.json': .*{says}"):
        _ = Problem.from_dict(given, base_dir).profile


def test_a_missing_profile_names_its_place(base_dir: Path) -> None:
    problem = Problem.from_dict(changed("engine", {"profile": "none.json"}), base_dir)
    with pytest.raises(InputError, match=r"the problem: engine\.profile 'none\.json': .* cannot be read"):
        _ = problem.profile
