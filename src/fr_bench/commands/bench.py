"""``fr-bench bench``: methods and peers side by side, interleaved in one run: a table, bench.json and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from fr_bench.bench.settings import HELP, ON_GPU, keys_of, make_settings, refuse_settings
from fr_bench.commands.train import parse
from fr_bench.errors import ConfigError
from fr_bench.settings.compose import compose
from fr_bench.settings.config import check
from fr_bench.settings.paths import with_quoted_paths
from fr_bench.simulation.settings import SIMULATE_HELP, make_simulate_settings

OWN = "bench."
SIMULATED = "simulate."
# What a bench sets unless the command line does. One thread a module: more modules then mean more cores, not more of
# each, and the yardstick stays the same.
DEFAULTS = {
    "dataset": "synthetic",
    "batch_size": "64",
    "threads": "1",
    "device": "cpu",
    "eval_every": "1000000",
    "log_every": "1000000",
    "console": "off",
    "wandb.mode": "disabled",
    "checkpoint.every": "null",
    "checkpoint.minutes": "null",
    "run_dir": "'outputs/bench-${dataset.name}-${model.name}/${now:%Y%m%d-%H%M%S}-${run_id:}'",
}
USAGE = """\
usage: fr-bench bench [bench.KEY=VALUE ...] [simulate.KEY=VALUE ...] [SETTING=VALUE ...]

Times methods and what a user would run instead (a plain PyTorch loop, DistributedDataParallel, torch's pipelines) in
one run, in turn, and leaves a table, bench.json and a figure. With simulate.k it also says what more devices would
give: the costs of every block, timed here, put through an event simulation; the rows are in simulate.json. All other
settings are those of fr-bench train.

  fr-bench bench model=resnet164 bench.k=[1,2]
  fr-bench bench model=resnet164 bench.methods=[] simulate.k=[8,16] simulate.bandwidth_gb_s=12 simulate.latency_us=10
  fr-bench bench device=cuda model=resnet164 bench.methods='[plain,bp,fr,"bp precision=tf32","fr precision=tf32"]'
  fr-bench bench model=resnet20 bench.methods='[bp,fr,"fr partition=equal","fr transport=gloo"]'

"""


def main(argv: list[str]) -> int:
    """Runs the comparison; returns 0, or 1 if something that was compared failed.

    Raises:
        ConfigError: a mistake in the command, before anything is started.
        Interrupted: a signal ended it; complete rounds are in bench.json, and of the first what there is.
    """
    if "-h" in argv or "--help" in argv:
        print(usage())
        return 0
    arguments = parse(with_quoted_paths(argv))
    if arguments.multirun or arguments.cfg or arguments.info:
        raise ConfigError("fr-bench bench is one run: -m, --cfg and --info belong to fr-bench train.")
    # With a + or ~ before them, too, which read_values refuses.
    own, simulated = (
        [word for word in arguments.overrides if word.lstrip("+~").startswith(each)] for each in (OWN, SIMULATED)
    )
    shared = [word for word in arguments.overrides if word not in (*own, *simulated)]
    simulation = make_simulate_settings(read_values(simulated, SIMULATED))
    values = read_values(own)
    overrides = with_defaults(shared)

    def config_of(words: Sequence[str]) -> dict[str, Any]:
        """The checked config of one contender."""
        composed = compose(argparse.Namespace(**{**vars(arguments), "overrides": [*overrides, *words]}))
        config = composed.jobs[0].config
        check(config)
        return config

    from fr_bench.bench.run import run_bench  # imports torch, which the paths above must not

    first = config_of(["method=bp", "k=1"])
    settings = make_settings(values, simulates=simulation.k is not None, on_gpu=is_on_gpu(first["device"]))
    return run_bench(settings, simulation, config_of, Path(first["run_dir"]))


def is_on_gpu(device: str) -> bool:
    """Whether ``device=auto``, ``cpu`` or ``cuda`` means a GPU here."""
    if device != "auto":
        return device == "cuda"
    import torch

    return torch.cuda.is_available()


def usage() -> str:
    """The help text."""
    helps = ((OWN, HELP, make_settings({})), (SIMULATED, SIMULATE_HELP, make_simulate_settings({})))
    texts = {
        f"{prefix}{key}": f"{text} ({_shown(getattr(defaults, key))})"
        for prefix, texts, defaults in helps
        for key, text in texts.items()
    }
    width = max(map(len, texts)) + 2
    lines = [f"  {key:<{width}}{text}" for key, text in texts.items()]
    set_here = ", ".join(f"{key}={value}" for key, value in DEFAULTS.items() if key != "run_dir")
    on_gpu = ", ".join(f"bench.{key}={_shown(value)}" for key, value in ON_GPU.items())
    return USAGE + "\n".join(lines) + f"\n\nSet here unless you do: {set_here}.\nDefaults with device=cuda: {on_gpu}."


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def read_values(words: Sequence[str], prefix: str = OWN) -> dict[str, Any]:
    """``bench.KEY=VALUE`` words, or those with another prefix, as values by key, in Hydra's grammar.

    Raises:
        ConfigError: a word that this grammar does not have.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(list(words))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: is not KEY=VALUE as Hydra reads it; quote what has a space.") from error
    values: dict[str, Any] = {}
    for word, override in zip(words, overrides, strict=True):
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise ConfigError(f"{word}: a plain KEY=VALUE is meant, with a list in brackets: {prefix}k=[1,2].")
        values[override.get_key_element().removeprefix(prefix)] = _plain(override.value())
    return values


def _plain(value: Any) -> Any:
    """Without the grammar's own type for quoted strings."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if hasattr(value, "text") else value


def with_defaults(words: Sequence[str]) -> list[str]:
    """The settings shared by all, with ours first where the command line has none.

    Raises:
        ConfigError: a setting that differs from contender to contender, or means nothing here.
    """
    refuse_settings(words)
    given = keys_of(words)
    return [*(f"{key}={value}" for key, value in DEFAULTS.items() if key not in given), *words]
