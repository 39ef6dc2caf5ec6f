"""metrics.jsonl and W&B get every record, whole and exact."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import BadStatusLine
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from ssl import SSLError
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import wandb
from harness import call, tiny_config, train_here

from fr_bench.errors import ConfigError, RunFailed
from fr_bench.launching.launch import Run, run_training
from fr_bench.launching.resume import decide
from fr_bench.records import wandb_sink
from fr_bench.records.run_directory import RunDirectory
from fr_bench.records.sinks import JsonLinesSink, Record, SinkGroup
from fr_bench.records.wandb_server import server_url, why_unreachable
from fr_bench.records.wandb_sink import WandbSink, check_wandb, find_credentials, resolve_mode

CONFIG: dict[str, Any] = {
    "method": {"name": "fr"},
    "model": {"name": "resnet20"},
    "dataset": {"name": "digits"},
    "k": 2,
    "seed": 7,
    "optimizer": {"lr": 0.05, "foreach": None},
}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def train_record(step: int, **fields: Any) -> Record:
    position = {"step": step, "epoch": step / 10, "train_time": step / 7}
    return {"kind": "train", **position, "loss": 1 / step, "error": 0.5, "lr": 0.1, **fields}


# metrics.jsonl


def test_every_record_is_a_line_that_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLinesSink(path)
    for step in (1, 2, 3):
        sink.write(train_record(step))
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            train_record(each) for each in range(1, step + 1)
        ]
    sink.finish(None, 0)


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, 5e-324, 2.0**60 + 1, 1 / 3]
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    for value in values:
        sink.write({"loss": value})
    sink.finish(None, 0)
    assert [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == values


def test_a_loss_that_is_not_a_number_is_null(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.write({"loss": float("nan"), "error": float("inf")})
    sink.finish(None, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": null, "error": null}\n'


# Several sinks


class ListSink:
    def __init__(self, failure: Exception | None = None) -> None:
        self.seen: list[Any] = []
        self.failure = failure

    def write(self, record: Record) -> None:
        self.seen.append(record)

    def finish(self, summary: Record | None, exit_code: int) -> None:
        self.seen.append((summary, exit_code))
        if self.failure:
            raise self.failure


def test_a_group_tells_everyone_and_a_failing_sink_does_not_keep_the_others_from_finishing() -> None:
    first, second = ListSink(OSError("disk full")), ListSink()
    group = SinkGroup([first, second])
    group.write({"kind": "train"})
    with pytest.raises(OSError, match="disk full"):
        group.finish(None, 1)
    assert first.seen == second.seen == [{"kind": "train"}, (None, 1)]


# W&B


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """Reads the run's .wandb file: LevelDB's log format with records of wandb's protobuf in it."""
    from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    data, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # a header never crosses a block's end
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part of several
            record = WandbRecord()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(update: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}


def history(run_dir: Path) -> list[dict[str, Any]]:
    rows = [items(record.history.item) for record in wandb_records(run_dir) if record.HasField("history")]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def test_an_offline_run_holds_exactly_the_records(tmp_path: Path) -> None:
    sink = WandbSink(tmp_path, CONFIG, mode="offline", project="fr-bench", tags=["a-tag"])
    expected = []
    for step in range(1, 19):
        sink.write(train_record(step))
        expected.append(
            {"step": step, "epoch": step / 10, "train_time": step / 7}
            | {"train/loss": 1 / step, "train/error": 0.5, "train/lr": 0.1}
        )
    position = {"step": 18, "epoch": 1.8, "train_time": 2.5}
    sink.write({"kind": "memory", **position, "module": 2, "device": "cpu", "peak": 2**33})
    sink.write({"kind": "time", **position, "module": 1, "wait_s": 0.25})
    sink.write({"kind": "eval", **position, "train_loss": 0.5, "test_error": 0.125})
    expected += [
        {**position, "memory/module_2/peak": 2**33},
        {**position, "time/module_1/wait_s": 0.25},
        {**position, "eval/train_loss": 0.5, "eval/test_error": 0.125},
    ]
    account = [{"parameters": 8, "stash": 0}, {"parameters": 16, "stash": 4}]
    sink.finish({"best_test_error": 0.125, "cuts": [4], "efficiency": None, "memory": account}, 0)
    wandb.teardown()  # as at the end of a process: until then its service may still be writing the file

    *rows, last = history(tmp_path)
    assert rows == expected
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/memory*.json")
    assert last["memory/nrows"] == 2 and json.loads(table.read_text()) == {
        "columns": ["module", "parameters", "stash"],
        "data": [[1, 8, 0], [2, 16, 4]],
    }
    records = list(wandb_records(tmp_path))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "fr-bench",
        "digits-resnet20",
        "fr-k2-s7",
        "train",
    )
    assert list(run.tags) == ["a-tag"]
    assert (tmp_path / "wandb" / "run_id").read_text().strip() == run.run_id
    config = items(run.config.update)
    assert {key: config[key] for key in CONFIG} == CONFIG
    metrics = {
        metric.name or metric.glob_name: metric for metric in (r.metric for r in records if r.HasField("metric"))
    }
    assert {"step", "epoch", "train_time"} <= metrics.keys()
    assert metrics["train/*"].step_metric == metrics["eval/test_error"].step_metric == "step"
    assert metrics["eval/test_error"].summary.min
    summary: dict[str, Any] = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["best_test_error"] == 0.125 and summary["cuts"] == [4]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_the_history_of_a_real_offline_run_is_its_metrics_file(tmp_path: Path) -> None:
    words = ["train", "debug=fast", "method=dgl", "k=2", "wandb.mode=offline", "max_steps=6"]
    words += ["diagnostics.sigma.every=3", "method.num_convolutions=0", "method.num_hidden=0"]
    done = call(tmp_path, *words, "diagnostics.sigma.window=1", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    wandb.teardown()
    expected = []
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, module = record.pop("kind"), record.pop("module", None)
        prefix = kind if module is None else f"{kind}/module_{module}"
        axes = {axis: record.pop(axis) for axis in ("step", "epoch", "train_time")}
        numbers = {f"{prefix}/{key}": value for key, value in record.items() if not isinstance(value, str)}
        expected.append({**axes, **numbers})
    *rows, table = history(tmp_path / "run")
    assert rows == expected and len({key.split("/")[0] for row in rows for key in row}) == 3 + 6  # axes and kinds
    assert table["memory/nrows"] == 2


def test_a_failed_run_ends_as_failed_and_a_resumed_one_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run_id").write_text("abcd1234\n")
    sink = WandbSink(tmp_path, CONFIG, mode="offline", project="p", group="my-group", name="my-name")
    sink.write(train_record(1))
    sink.finish(None, 130)
    wandb.teardown()
    records = list(wandb_records(tmp_path))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.run_id, run.run_group, run.display_name) == ("abcd1234", "my-group", "my-name")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [130]


def rows_after(config: dict[str, Any], run: Path) -> list[tuple[str, int]]:
    """What W&B has when the run goes on, and then makes a record of its seventh step: kind and step of each row."""
    directory = RunDirectory(run)
    start = decide(config, directory, print)
    assert start.plan is not None
    sinks = SinkGroup(Run(start.plan, directory, start)._sinks())
    sinks.write(train_record(7))
    sinks.finish(None, 75)
    wandb.teardown()
    return [(key.partition("/")[0], row["step"]) for row in history(run) for key in row if key.endswith("/loss")]


def test_a_run_that_began_without_wandb_is_there_from_its_first_record(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 5})
    train_here(config, tmp_path / "run", cut_off_at=8)
    config["wandb"] |= {"mode": "offline"}
    assert rows_after(config, tmp_path / "run") == [*(("train", step) for step in range(1, 6)), ("train", 7)]


def test_a_takeover_that_is_cut_off_and_begins_again_is_there_once(tmp_path: Path) -> None:
    config = tiny_config("fr", 2, checkpoint={"every": 5})
    train_here(config, tmp_path / "source", cut_off_at=6)
    config |= {"resume": str(tmp_path / "source"), "checkpoint": {"every": None, "minutes": None, "keep": 2}}
    train_here(config, tmp_path / "run", cut_off_at=8)
    (tmp_path / "run" / "wandb").mkdir()
    (tmp_path / "run" / "wandb" / "run_id").write_text("abcd1234\n")  # it has what it made until then
    config["wandb"] |= {"mode": "offline"}
    assert rows_after(config, tmp_path / "run") == []


def test_what_two_attempts_made_behind_one_checkpoint_is_there_once(tmp_path: Path) -> None:
    """The second was cut off before it came as far as the first."""
    config = tiny_config("fr", 2, checkpoint={"every": 5})
    train_here(config, tmp_path / "run", cut_off_at=8)
    (tmp_path / "run" / "wandb").mkdir()
    (tmp_path / "run" / "wandb" / "run_id").write_text("abcd1234\n")  # it has the steps until then
    train_here(config, tmp_path / "run", cut_off_at=6)
    config["wandb"] |= {"mode": "offline"}
    assert rows_after(config, tmp_path / "run") == []


def test_sinks_are_told_how_a_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def fail(*_: Any) -> None:
        raise RunFailed("module 2 was killed", 2)

    monkeypatch.setattr(SinkGroup, "finish", lambda _, summary, exit_code: told.append((summary["state"], exit_code)))
    monkeypatch.setattr(Run, "_supervise", fail)
    with pytest.raises(RunFailed):
        run_training(tiny_config("fr", 2), tmp_path / "run")
    assert told == [("failed", 1)]


def test_a_mirror_that_breaks_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = WandbSink(tmp_path, CONFIG, mode="offline", project="p")
    wandb.teardown()  # its service is gone, as after a crash
    for step in (1, 2, 3):
        sink.write(train_record(step))
    sink.finish(None, 0)
    assert capsys.readouterr().err.count("W&B stopped") == 1


def test_how_a_run_ended_is_known_where_its_table_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for a user without a home."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "file"))
    sink = WandbSink(tmp_path, CONFIG, mode="offline", project="p")
    sink.finish({"memory": [{"parameters": 8}]}, 1)
    wandb.teardown()
    assert [record.exit.exit_code for record in wandb_records(tmp_path) if record.HasField("exit")] == [1]
    assert "please set WANDB_DATA_DIR" in capsys.readouterr().err


def test_wandb_is_imported_by_nobody_who_does_not_use_it() -> None:
    use = "import sys, fr_bench.records.wandb_sink as w; w.check_wandb(w.resolve_mode('offline'))"
    program = f"{use}; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("variable", "config_mode", "mode"),
    [
        (None, "offline", "offline"),
        ("disabled", "online", "disabled"),
        ("online", "disabled", "online"),
        ("dryrun", "online", "offline"),
        ("", "online", "online"),
    ],
)
def test_the_variable_wandb_mode_wins(
    variable: str | None, config_mode: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert resolve_mode(config_mode) == mode


def test_a_misspelt_wandb_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match=r"WANDB_MODE=ofline.*Did you mean 'offline'"):
        resolve_mode("online")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WANDB_SILENT", "maybe", "WANDB_SILENT=maybe: W&B refuses it .*boolean"),
        ("WANDB_BASE_URL", "foo", "WANDB_BASE_URL=foo: W&B refuses it"),
        ("WANDB_PROJECT", "a/b", "WANDB_PROJECT=a/b: W&B refuses it"),
        ("WANDB_API_KEY", f"{KEY} ", r"WANDB_API_KEY=\.\.\.: W&B refuses it .*whitespace"),
    ],
)
def test_a_variable_that_wandb_would_refuse_is_refused_before_it(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message) as refused:
        check_wandb("offline")
    assert "\n" not in str(refused.value) and KEY not in str(refused.value)
    check_wandb("disabled")


def test_an_empty_wandb_mode_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb, which reads the variable itself, takes no empty one."""
    monkeypatch.setenv("WANDB_MODE", "")
    assert resolve_mode("offline") == "offline" and "WANDB_MODE" not in os.environ


def test_online_without_a_key_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no API key for api\.wandb\.ai; run `wandb login`"):
        check_wandb("online")
    check_wandb("offline")
    check_wandb("disabled")


def test_a_key_is_found_where_wandb_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / ".netrc").write_bytes(b"machine other login \xff password x\n")  # is no text, and has none
    with pytest.raises(ConfigError, match=r"no API key for api\.wandb\.ai"):
        check_wandb("online")
    (tmp_path / "home" / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    check_wandb("online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(ConfigError, match=r"no API key for wandb\.example\.org"):
        check_wandb("online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_wandb("online")


def test_a_server_of_ones_own_is_known_from_the_settings_of_wandb_login(tmp_path: Path) -> None:
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    (tmp_path / "home" / ".netrc").write_text(f"machine wandb.example.org login user password {KEY}\n")
    check_wandb("online")


def test_without_wandb_only_disabled_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_sink, "installed_version", lambda name: None)
    check_wandb("disabled")
    with pytest.raises(ConfigError, match=r"not installed; pip install wandb, or use wandb\.mode=disabled"):
        check_wandb("offline")


def test_a_wandb_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with another version of something that it needs."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise ImportError('cannot import name Message')\n")
    words = ["train", "debug=fast", "max_steps=2", "k=1", "wandb.mode=offline", f"run_dir={tmp_path / 'run'}"]
    done = call(tmp_path, *words)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fr-bench: wandb is installed but cannot be imported (ImportError: cannot import name Me")
    assert "wandb.mode=disabled" in last and "Traceback" not in done.stderr


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_answers_anything_is_reachable_and_others_are_not_for_long(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for refusal in (404, 503):
        with HTTPServer(("127.0.0.1", 0), refusing(refusal)) as server:
            threading.Thread(target=server.handle_request, daemon=True).start()
            monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
            assert (why_unreachable(60) is None) == (refusal == 404)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    host = silent_server.removeprefix("http://")
    assert why_unreachable(0.2) in (f"{host} does not answer within 0.2 s", f"{host} cannot be reached (timed out)")
    monkeypatch.setenv("WANDB_BASE_URL", "http://name.invalid")
    assert (why_unreachable(60) or "").startswith("name.invalid cannot be reached (")


def refusing(code: int) -> type[BaseHTTPRequestHandler]:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(code)

        def log_message(self, *_: object) -> None:
            pass

    return Refusing


def test_training_goes_on_where_wandb_cannot_be_reached_and_its_data_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # closed again, so that nobody is there
    variables = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_MODE": "online"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # what it has read of the environment
    words = ["model=mlp", "dataset=synthetic", "k=1", "max_steps=3", "log_every=1", "console=off", "wandb.mode=online"]
    words += ["dataset.num_train=64", "dataset.num_test=16", "batch_size=16"]
    done = call(tmp_path, "train", *words, f"run_dir={tmp_path / 'run'}")
    wandb.teardown()
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fr-bench: W&B")]
    assert line.startswith(
        f"fr-bench: W&B: 127.0.0.1:{port} cannot be reached ([Errno 111] Connection refused); the run"
    )
    assert "wandb sync" in line and "Traceback" not in done.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 8 and not [path for path in files if KEY.encode() in path.read_bytes()], "the key is in a file"
    losses = [row["train/loss"] for row in history(tmp_path / "run") if "train/loss" in row]
    records = [json.loads(record) for record in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses == [record["loss"] for record in records if record["kind"] == "train"] and len(losses) == 3


@pytest.mark.parametrize(
    "where", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "settings", "NETRC", ".netrc", "_netrc"]
)
def test_each_place_of_a_key_is_known(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert find_credentials() is None
    for name in ("WANDB_API_KEY", "NETRC"):
        monkeypatch.setenv(name, "")
    assert find_credentials() is None  # as where a variable of a script is empty
    line = "machine api.wandb.ai login user password 12345\n"
    if where.startswith("WANDB"):
        monkeypatch.setenv(where, "x")
    elif where == "settings":
        (tmp_path / "settings").write_text("[default]\napi_key = x\n")
    else:
        (tmp_path / where).write_text(line)
        if where == "NETRC":
            monkeypatch.setenv("NETRC", str(tmp_path / where))
    assert find_credentials() is not None


def test_the_settings_of_the_folder_win_over_those_of_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "users"))
    monkeypatch.chdir(tmp_path)
    for name in ("users", "wandb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "settings").write_text(f"[default]\nbase_url = https://{name}.example.org\n")
    assert server_url() == "https://wandb.example.org"


@pytest.mark.parametrize(
    ("error", "reachable"),
    [
        *[(HTTPError("http://x", code, "", None, None), True) for code in (401, 404, 500)],
        *[(HTTPError("http://x", code, "", None, None), False) for code in (502, 503, 504)],
        (URLError(SSLError("certificate verify failed")), True),
        (URLError("no route"), False),
        (ConnectionResetError("reset"), False),
        (BadStatusLine("?"), True),
    ],
)  # fmt: skip
def test_what_counts_as_an_answer(error: Exception, reachable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*_, **__):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert (why_unreachable(60) is None) == reachable


def test_what_the_config_says_of_the_wandb_run_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, metrics = {}, {}
    run = SimpleNamespace(id="x", define_metric=lambda name, **how: metrics.update({name: how}))
    fake = SimpleNamespace(init=lambda **settings: asked.update(settings) or run, Error=RuntimeError)
    monkeypatch.setattr(wandb_sink, "_import", lambda: fake)
    config = {"method": {"name": "fr"}, "model": {"name": "m"}, "dataset": {"name": "d"}, "k": 2, "seed": 3}
    given = {"project": "p", "entity": "e", "group": "g", "name": "n", "tags": ["t"]}
    wandb_sink.WandbSink(tmp_path, config, mode="offline", **given)
    assert {key: asked[key] for key in given} == given and asked["mode"] == "offline" and asked["config"] == config
    assert {name for name, how in metrics.items() if how.get("summary") == "min"} == {
        "eval/test_error", "eval/validation_error"
    }  # fmt: skip
