"""A thousand spoilt configs, and a thousand spoilt metrics.jsonl: one message at most, never a traceback."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from run_files import records_of_a_run, write_run

from fr_bench.commands.train import parse
from fr_bench.errors import ConfigError
from fr_bench.figures.drawing import Drawing
from fr_bench.figures.write import draw_all
from fr_bench.launching.earlier_records import resumable_records
from fr_bench.launching.launch import check_plan
from fr_bench.records.collector import Collector
from fr_bench.records.runs import find_runs
from fr_bench.records.summary import SummaryBuilder
from fr_bench.report.curves import as_curves
from fr_bench.report.groups import make_groups, pairs
from fr_bench.report.markdown import as_markdown
from fr_bench.report.tables import as_csv, make_rows
from fr_bench.settings.compose import MISTAKES, compose, plain_config
from fr_bench.settings.config import COMPONENTS, check

# The same examples every time: a failure is a failure of the change at hand.
COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
WORDS = ["model=mlp", "model.width=8", "model.depth=2", "dataset=synthetic", "dataset.num_train=64", "k=2"]
WORDS += [
    "dataset.num_test=16",
    "dataset.height=4",
    "dataset.width=4",
    "batch_size=16",
    "partition=equal",
    "device=cpu",
]
WORDS += ["wandb.mode=disabled", "epochs=2", "threads=1"]

SMALL = [None, True, False, -1, 0, 1, 2, 3, 17, 0.5, -0.0, float("nan"), float("inf"), -1e308, 1e-300]
HUGE = [2**31, 2**63, 10**30, 1e308]  # of sizes these would be a request, not a mistake
TEXTS = [
    "",
    " ",
    "auto",
    "nan",
    "null",
    "1",
    "yes",
    "a/b",
    "é" * 300,
    "../x",
    "${k}",
    "${nothing}",
    "${",
    "???",
    "None",
]
TARGETS = [
    "os",
    "os.getcwd",
    "builtins.min",
    "torch.optim.Adam",
    "torch.nn.Linear",
    "fr_bench.models.mlp.mlp",
    "no.such",
]
TARGETS += ["fr_bench.", ".", "a b", "fr_bench.schedules.MultiStep", "fr_bench.methods.ddg.DecoupledDelayedGradients"]
LISTS = [[], [1], [0], [-1, 1], [1, 1], ["x"], [[1]], [None], [0.5, "y"], [True, False]]
DICTS = [{}, {"x": 1}, {"_target_": "os.getcwd"}, {"name": "x"}, {"every": 1}, {"_target_": 3}, {"_partial_": True}]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fuzz")
    config = compose(parse([*WORDS, f"run_dir={folder / 'run'}"])).jobs[0].config
    check(config)
    check_plan(config)
    return config


def paths_of(node: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*above, key))


def spoil(config: DictConfig, draw: st.DataObject, paths: list[tuple[str, ...]]) -> None:
    """One key gets another value, goes, or comes."""
    path = draw.draw(st.sampled_from(paths))
    node: Any = config
    for key in path[:-1]:
        node = node[key] if isinstance(node, dict) and key in node else None
    if not isinstance(node, dict):  # an earlier change took it away
        return
    kind = draw.draw(st.sampled_from(["value", "value", "value", "value", "goes", "comes"]))
    if kind == "goes":
        node.pop(path[-1], None)
        return
    is_size = path[0] in ("model", "dataset")
    values = SMALL + TEXTS + TARGETS + LISTS + DICTS + ([] if is_size else HUGE)
    node["unknown" if kind == "comes" else path[-1]] = draw.draw(st.sampled_from(values))


@settings(max_examples=200, **COMMON)
@given(draw=st.data())
def test_a_spoilt_config_is_planned_or_refused_with_a_message(valid: dict[str, Any], draw: st.DataObject) -> None:
    """As `fr-bench train` checks it, from the composed config on."""
    spoilt: Any = json.loads(json.dumps(valid))
    for _ in range(draw.draw(st.integers(1, 3))):
        spoil(spoilt, draw, list(paths_of(valid)))
    config = spoilt
    # Components have no types: without references they need no composing, which takes longer than all else here.
    refers = any(text in json.dumps(spoilt) for text in ("${", "???"))
    typed = valid.keys() - set(COMPONENTS)
    if refers or spoilt.keys() != valid.keys() or any(spoilt[key] != valid[key] for key in typed):
        try:
            config = plain_config(OmegaConf.create(spoilt), str(valid["run_dir"]))
        except MISTAKES:
            return  # explained by the composer: see the next test
    try:
        check(config)
        check_plan(config)
    except ConfigError as error:
        assert str(error)


@settings(max_examples=10, **COMMON)
@given(draw=st.data())
def test_a_spoilt_command_line_too(valid: dict[str, Any], draw: st.DataObject) -> None:
    flat = [".".join(path) for path in paths_of(valid) if path[0] not in ("run_dir", "sweep_dir")]
    key, value = draw.draw(st.sampled_from(flat)), draw.draw(st.sampled_from(SMALL + TEXTS + TARGETS + LISTS + DICTS))
    word = f"{draw.draw(st.sampled_from(['', '', '+', '~']))}{key}={'null' if value is None else value}"
    try:
        config = compose(parse([*WORDS, f"run_dir={valid['run_dir']}", word])).jobs[0].config
        check(config)
        check_plan(config)
    except ConfigError as error:
        assert str(error)


LINES = [json.dumps(record) for record in records_of_a_run(2, epochs=2)]
JSON = st.sampled_from([*SMALL, *HUGE, 10**400, *TEXTS[:6], *LISTS[:5], {}, {"x": 1}, "train", "memory"])


def spoilt_lines(draw: st.DataObject) -> bytes:
    """Of a good file: values, keys, lines and bytes that are others, are gone, or come twice."""
    lines = [line.encode() for line in LINES]
    for _ in range(draw.draw(st.integers(1, 4))):
        index = draw.draw(st.integers(0, len(lines) - 1))
        kind = draw.draw(st.sampled_from(["value", "value", "value", "goes", "cut", "bytes", "twice", "swap", "deep"]))
        if kind in ("value", "goes"):
            try:
                record = json.loads(lines[index])
                key = draw.draw(st.sampled_from(sorted(record)))
            except (ValueError, TypeError, RecursionError):
                continue
            record[key] = draw.draw(JSON)
            if kind == "goes":
                del record[key]
            lines[index] = json.dumps(record).encode()
        elif kind == "cut":
            lines[index] = lines[index][: draw.draw(st.integers(0, len(lines[index])))]
        elif kind == "bytes":
            at = draw.draw(st.integers(0, len(lines[index])))
            lines[index] = lines[index][:at] + draw.draw(st.binary(max_size=4)) + lines[index][at + 1 :]
        elif kind == "twice":
            lines.insert(draw.draw(st.integers(0, len(lines))), lines[index])
        elif kind == "swap":
            lines[index], lines[0] = lines[0], lines[index]
        else:
            lines[index] = b"[" * 5_000
    return b"\n".join(lines) + draw.draw(st.sampled_from([b"", b"\n", b"\0"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("metrics") / "run", epochs=2)
    (path / "config.yaml").unlink()  # reading it a thousand times takes longer than all else here
    (path / "summary.json").write_text(json.dumps({"method": "fr", "model": "m", "dataset": "d", "k": 2, "seed": 0}))
    return path


# Of a run that took over from another.
OTHER_FILES: dict[str, dict[str, Any]] = {
    "status.json": {"state": "finished", "error": None, "started": 1.0},
    "summary.json": {"method": "fr", "model": "tiny", "dataset": "digits", "k": 2, "seed": 0, "state": "finished"},
    "env.json": {
        "cpu": {"model": "c", "cores": 2},
        "gpus": [{"name": "g"}],
        "code": {"mine": "0123"},
        "code_before": [{"mine": "4567"}],
    },
    "origin.json": {
        "run": "there",
        "step": 5,
        "epoch": 0.5,
        "train_time": 1.0,
        "method": "bp",
        "k": 1,
        "replicas": 1,
        "num_steps": 20,
        "is_exact": True,
        "in_one_piece": False,
        "settings": {"cuts": [1], "epochs": 2},
        "origin": {"k": 2, "step": 1, "num_steps": 20, "settings": {"epochs": 3}, "origin": None},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one group, and BP."""
    folder = tmp_path_factory.mktemp("files")
    settings = {"replicas": 1, "method": {"checkpoint_activations": True}, "schedule": {"_target_": "s", "name": "s"}}
    for name, method in (("spoilt", "fr"), ("whole", "fr"), ("bp", "bp")):
        path = write_run(folder / name, method, seed=len(name), epochs=2, settings=settings)
        for file, content in OTHER_FILES.items():
            (path / file).write_text(json.dumps(content))
    return folder


@settings(max_examples=400, **COMMON)
@given(draw=st.data())
def test_spoilt_metrics_are_reported_as_far_as_they_are_good(run: Path, draw: st.DataObject) -> None:
    """What `report` and `plot` read, and what a run that goes on does."""
    (run / "metrics.jsonl").write_bytes(spoilt_lines(draw))
    problems: list[str] = []
    for groups in pairs(make_groups(find_runs([str(run)], problems.append), problems.append)).values():
        rows = make_rows(groups)
        assert as_markdown(rows) and as_csv(rows)
    records = resumable_records(run / "metrics.jsonl")
    summary = SummaryBuilder(
        {
            "method": {"name": "fr"},
            "model": {"name": "m"},
            "dataset": {"name": "d"},
            "k": 2,
            "seed": 0,
            "batch_size": 8,
        },
        [1],
        3,
    )
    for record in records:
        summary.add(record)
    json.dumps(summary.build("finished"))
    Collector(2, 10, 8, True).go_on(1.0, records)


@settings(max_examples=100, **COMMON)
@given(draw=st.data())
def test_spoilt_files_beside_the_metrics_are_reported_as_far_as_they_are_good(runs: Path, draw: st.DataObject) -> None:
    """Beside a run that is whole, as in a folder where somebody has edited one."""
    name = draw.draw(st.sampled_from(["config.yaml", "config.yaml", *sorted(OTHER_FILES)]))
    path = runs / "spoilt" / name
    whole = path.read_bytes()
    content = copy.deepcopy(OTHER_FILES[name]) if name in OTHER_FILES else yaml.safe_load(whole)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.sampled_from([*paths_of(content)]))
        node: Any = content
        for key in at[:-1]:
            node = node[key]
        node[at[-1]] = copy.deepcopy(draw.draw(st.sampled_from([*SMALL, *HUGE, *TEXTS, *LISTS, *DICTS])))
    path.write_text(json.dumps(content))
    try:
        problems: list[str] = []
        for groups in pairs(make_groups(find_runs([str(runs)], problems.append), problems.append)).values():
            rows = make_rows(groups)
            assert as_markdown(rows) and as_csv(rows) and as_curves(groups)
        assert not any("\n" in problem for problem in problems)
    finally:
        path.write_bytes(whole)


@settings(max_examples=2, **COMMON)
@given(draw=st.data())
def test_spoilt_metrics_are_drawn_as_far_as_they_are_good(run: Path, draw: st.DataObject) -> None:
    """As `plot` draws them, without the other half of its files: a PDF refuses more than a PNG."""
    (run / "metrics.jsonl").write_bytes(spoilt_lines(draw))
    groups = make_groups(find_runs([str(run)], lambda _: None), lambda _: None)
    drawings = [drawing for drawing in draw_all(groups, "paper") if isinstance(drawing, Drawing)]
    assert drawings
    for drawing in drawings:
        drawing.figure.savefig(io.BytesIO(), format="pdf")
