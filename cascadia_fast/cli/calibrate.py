"""``cascadia-fast calibrate``: fit a profile to measured runs, or say how well one predicts them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascadia_fast.cli.outcome import outcome, printing, progress

if TYPE_CHECKING:
    from cascadia_fast.measurements import Measurements
    from cascadia_fast.profile import Profile

EPILOG = """\
JSON: --evaluate prints {profile, files, rows, rejected, overall, unsaturated, saturated, groups[], unpredicted[],
unpredicted_reasons, notes}. overall, unsaturated, saturated and each of groups (with model, gpu, engine, precision)
hold ttft and tpot: {rows, predicted, median_abs_error, mean_abs_error, p90_abs_error, bias, spearman}, errors being
predicted over measured minus one and null where nothing can be said, and statuses, the number of runs by how far their
predictions can be trusted. unpredicted[] is {source, reason}. Without --evaluate it prints {profile, before, after,
cross_validation {model, tp, gpu}, kept[], contradictory[]}; before and after are as above. Exit codes: 0 done, 2 bad
input.
"""


def calibrate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="MEASUREMENTS...",
            help="CSV in the columns of the published runs (model_path, system, backend, isl, osl, tp_size, "
            "concurrency, silicon_ttft_ms, silicon_tpot_ms, ...), JSON of `vllm bench serve --save-result` (with "
            "--metadata gpu=h100 tp=4 it says the rest), or JSONL of `sglang.bench_serving --output-file`.",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="PATH", help="Write the fitted profile to this file.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Fit nothing: compare a profile's predictions with the measurements.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Profile to evaluate or to start from: a file, shipped (default), or kernels: the kernel timings "
            "alone. Cross-validation always starts from kernels, which saw no run.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the fitted profile.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables; its fields stand below.")
    ] = False,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model, where a file does not say.")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="GPU, where a file does not say.")] = None,
    engine: Annotated[
        str | None, typer.Option(metavar="vllm|sglang|trtllm", help="Engine, where a file does not say.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Format of the weights, where a file does not say.")
    ] = None,
    kv: Annotated[
        str | None, typer.Option(metavar="bf16|fp8", help="Format of the KV cache, where a file does not say.")
    ] = None,
    tp: Annotated[int | None, typer.Option(metavar="N", min=1, help="Tensor parallelism, likewise.")] = None,
    pp: Annotated[int | None, typer.Option(metavar="N", min=1, help="Pipeline parallelism, likewise; else 1.")] = None,
    ep: Annotated[int | None, typer.Option(metavar="N", min=1, help="Expert parallelism, likewise; else 1.")] = None,
    attention_dp: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Data parallelism of attention, likewise; else 1.")
    ] = None,
    model_config: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Config.json of a model that the catalog lacks; may be repeated."),
    ] = None,
) -> None:
    """Fit the latency model to measured serving runs, or evaluate it on them (--evaluate)."""
    given: dict[str, Any] = {"model": model, "gpu": gpu, "engine": engine, "weights": weights, "kv": kv}
    given |= {"tp": tp, "pp": pp, "ep": ep, "attention_dp": attention_dp}
    with outcome():
        _check_output(output, evaluate, [*files, *([profile] if profile else [])])
        known = _profile(profile or "shipped")
        runs = _runs(files, {field: value for field, value in given.items() if value is not None}, model_config or [])
        if evaluate:
            _evaluate(runs, known, as_json)
            return
        _fit(runs, known, output, name or _name(files), as_json)


def _check_output(output: str | None, evaluate: bool, inputs: Sequence[str]) -> None:
    """Refuse, before any fitting, to write the profile where it cannot be or must not be."""
    from cascadia_fast.errors import InputError

    if output is None:
        return
    if evaluate:
        raise InputError(f"-o {output} has nothing to hold: --evaluate fits no profile; leave one of them out")
    if output in ("", "-"):
        raise InputError(f"-o is {output!r}; give the path of a file, or --json to print the result")
    if os.path.isdir(output) or not os.path.isdir(os.path.dirname(output) or "."):
        raise InputError(f"-o {output} is a directory or lies in none; give the path of a file in a directory")
    for path in inputs:
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise InputError(f"-o {output} is a file that calibration reads; give another path")


def _profile(given: str) -> Profile:
    from cascadia_fast.profile import Profile

    known = {"shipped": Profile.shipped, "kernels": Profile.kernels}
    return known[given]() if given in known else Profile.read(given)


def _runs(files: Sequence[str], given: Mapping[str, Any], configs: Sequence[str]) -> Measurements:
    from cascadia_fast.errors import InputError
    from cascadia_fast.measurements import read_measurements

    paths = {}
    for text in configs:
        known_as, equals, path = text.partition("=")
        if not (known_as and equals and path):
            raise InputError(f"--model-config is {text!r}; give NAME=FILE with the name the measurement files have")
        paths[known_as] = path
    return read_measurements([Path(file) for file in files], defaults=given, model_configs=paths)


def _evaluate(runs: Measurements, profile: Profile, as_json: bool) -> None:
    from cascadia_fast.calibration import evaluate

    found = evaluate(runs, profile)
    with printing():
        if as_json:
            _print_json(found)
            return
        from cascadia_fast.calibration_summary import evaluation_text, show

        show(evaluation_text(found), sys.stdout)


def _fit(runs: Measurements, start: Profile, output: str | None, name: str, as_json: bool) -> None:
    from cascadia_fast.calibration import fit
    from cascadia_fast.calibration_summary import calibration_text, show
    from cascadia_fast.errors import InputError

    if not runs.rows:
        first = runs.rejected[0]
        raise InputError(f"no run of {len(runs.rejected):,} can be used, such as {first.source}: {first.reason}")
    with progress() as say:
        fitted = fit(runs, start, name=name, command=_command(), progress=say)
    if output is not None:
        fitted.profile.write(output)
    with printing():
        if as_json:
            parts = ("before", "after", "cross_validation", "kept", "contradictory")
            _print_json({"profile": fitted.profile.name, **{part: getattr(fitted, part) for part in parts}})
            return
        show(calibration_text(fitted), sys.stdout)
        typer.echo(
            f"\nWrote {output}" if output is not None else "\nThe profile is not saved; give -o PATH to save it."
        )


def _name(files: Sequence[str]) -> str:
    """What a profile is called that nobody named: after its first file."""
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{Path(files[0]).name.split('.')[0]}{others}"


def _command() -> str:
    """The command as typed, for the profile's provenance, without where absolute paths lie on this machine."""
    words = [os.path.basename(word) if os.path.isabs(word) else word for word in sys.argv[1:]]
    return shlex.join(["cascadia-fast", *words])


def _print_json(found: Mapping[str, Any]) -> None:
    import orjson

    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
