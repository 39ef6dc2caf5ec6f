"""Composes the config of every job that a command line asks for, as Hydra will, before Hydra runs anything.

Hydra by itself finds a mistake late: after the output folder exists, or in the middle of a sweep. So we ask
its own config loader for the same configs first. This file alone uses Hydra's internals (hydra-core 1.3).
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from fr_bench.errors import ConfigError
from fr_bench.settings.cluster import RESOLVERS, check_cluster
from fr_bench.settings.comparison import LOGGING
from fr_bench.settings.config import COMPONENTS, NAMED_COMPONENTS, Config, check_name
from fr_bench.settings.explain import MISTAKES, Known, explain
from fr_bench.settings.folder_names import folder_name

CONFIG_PATH = "pkg://fr_bench.conf"
CONFIG_NAME = "config"
VERSION_BASE = "1.3"
# But for what decides which errors are seen (the best is of more or fewer), where the run is, and whether it is one.
NOT_IN_A_FOLDERS_NAME = {*LOGGING} - {"eval_every", "run_dir", "dry_run"}


@dataclass(frozen=True)
class Job:
    """One run: the overrides that make it different, its resolved config, and Hydra's of its launcher."""

    overrides: list[str]
    config: dict[str, Any]
    launcher: dict[str, Any]


@dataclass(frozen=True)
class Composition:
    """What a command line asks for.

    Attributes:
        jobs: one, or under ``-m`` every combination. A sweeper other than Hydra's basic one chooses its
            values as it goes: then the one job here is the settings that all of them share.
        sweep_dir: folder of the sweep, None for a single run.
        num_jobs: how many runs it will be, None if that is the sweeper's to decide.
        launcher: the class that Hydra will have run the jobs of a sweep, by its dotted path; None for a single run.
    """

    jobs: list[Job]
    sweep_dir: str | None
    num_jobs: int | None
    launcher: str | None


@dataclass(frozen=True)
class Source:
    """A YAML file of which a config is composed.

    Attributes:
        name: such as ``method/fr``.
        package: the section that it fills, "" for the top level.
        text: what is in it.
    """

    name: str
    package: str
    text: str


@dataclass(frozen=True)
class Anatomy:
    """What a job's config is made of.

    Attributes:
        config: plain, its references unresolved, without Hydra's own.
        sources: in the order in which they are merged.
        groups: the options of every group.
        choices: the option of every group that has one.
    """

    config: dict[str, Any]
    sources: list[Source]
    groups: dict[str, list[str]]
    choices: dict[str, str]


def register() -> None:
    """Makes the schema and the resolvers known to Hydra; harmless to repeat."""
    ConfigStore.instance().store(name="config_schema", node=Config, provider="fr_bench")
    # Two jobs started in the same second must not share a folder, so a time stamp is not enough.
    OmegaConf.register_new_resolver("run_id", lambda: secrets.token_hex(3), use_cache=True, replace=True)
    OmegaConf.register_new_resolver("first_of", lambda given, default: given or default, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("first_module", first_module, replace=True)
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def first_module(value: float, k: int) -> list[float]:
    """``value`` for module 1 and 1 for those above it, if there are any: ``module_lr`` for every k."""
    return [float(value), *[1.0] * (k - 1)] if k > 1 else [1.0] * k


def job_folder(sweep_dir: str | None, default: str, *, _root_: DictConfig) -> str:
    """A job's folder in its sweep: ``default``, or with a ``sweep_dir`` of the user's own, the job's overrides, so that
    the same sweep started again finds its runs whatever became of their order.

    What is the same for all jobs of the sweep is in the name too: with other settings it is another run.
    """
    if not sweep_dir:
        return default
    task = [str(word) for word in _root_.hydra.overrides.task]
    name = ",".join(sorted(word for word in task if re.split("[.=]", word.lstrip("+"))[0] not in NOT_IN_A_FOLDERS_NAME))
    return folder_name(name) or default


def compose(arguments: argparse.Namespace) -> Composition:
    """Composes all jobs.

    Args:
        arguments: of Hydra's own parser (overrides, multirun, config_dir, config_name, config_path).

    Raises:
        ConfigError: for any mistake; under ``-m`` the message names the combination.
    """
    with _config_loader(arguments) as loader:
        composer = _Composer(loader, arguments.config_name or CONFIG_NAME, arguments.overrides)
        return composer.compose(arguments.multirun or (_may_be_a_sweep(arguments) and composer.is_a_sweep()))


def _may_be_a_sweep(arguments: argparse.Namespace) -> bool:
    """Whether ``hydra.mode`` may say so without ``-m``: in a file of the user's own, or in a setting of Hydra's (no
    file of ours does). Else a config need not be composed to see, which takes a tenth of a second."""
    own_files = arguments.config_dir or arguments.config_path or arguments.config_name
    return bool(own_files) or any(word.lstrip("+~").startswith("hydra") for word in arguments.overrides)


def take_apart(arguments: argparse.Namespace, job: Job) -> Anatomy:
    """The config of ``job``, which was composed from the same ``arguments``, in its parts."""
    name = arguments.config_name or CONFIG_NAME
    with _config_loader(arguments) as loader:
        config = loader.load_configuration(name, job.overrides, RunMode.RUN)
        chosen = {str(group): str(option) for group, option in config.hydra.runtime.choices.items() if option}
        plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        sources = []
        for each in loader.compute_defaults_list(name, job.overrides, RunMode.RUN).defaults:
            path = each.config_path or ""
            found = None if path.startswith("hydra/") else loader.repository.load_config(path)  # type: ignore[attr-defined]
            if found is not None and (file := _file(found.path, path)) is not None:
                sources.append(Source(path, each.package or "", file))
        groups = [group for group in loader.list_groups("") if group != "hydra"]
        options = {group: sorted(loader.get_group_options(group)) for group in groups}
    assert isinstance(plain, dict)
    named = {str(key): value for key, value in plain.items()}
    return Anatomy(named, sources, options, {group: chosen[group] for group in groups if group in chosen})


def _file(place: str, path: str) -> str | None:
    """The text of a config in a folder or package of Hydra's search path; None for one that is no file."""
    scheme, _, folder = place.partition("://")
    if scheme not in ("file", "pkg"):
        return None
    root = Path(folder) if scheme == "file" else resources.files(folder)
    return root.joinpath(f"{path.removesuffix('.yaml')}.yaml").read_text(encoding="utf-8")


def plain_config(config: DictConfig, run_dir: str) -> dict[str, Any]:
    """Returns the job's config with the types of the schema, resolved, as plain dicts and lists.

    Args:
        config: the composed config, with or without its ``hydra`` node; HydraConfig must be set, because
            values may refer to ``${hydra:...}``.
        run_dir: what ``run_dir`` becomes.

    Raises:
        OmegaConfBaseException: an unknown key, a wrong type, a missing value or reference.
    """
    typed = OmegaConf.structured(Config)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(own, False)
    own.run_dir = run_dir
    merged = OmegaConf.merge(typed, own)
    OmegaConf.copy_cache(from_config=config, to_config=merged)  # time stamp and run_id as in Hydra's folders
    plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    OmegaConf.merge(typed, plain)  # what a reference stood for has types to keep, too
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def _config_loader(arguments: argparse.Namespace) -> Iterator[ConfigLoader]:
    """The loader that ``hydra.main`` would make from the same command line."""
    version.setbase(VERSION_BASE)
    register()
    path = create_automatic_config_search_path(None, "fr_bench.cli", arguments.config_path or CONFIG_PATH)
    assert isinstance(path, ConfigSearchPathImpl)
    if arguments.config_dir is not None:
        folder = os.path.abspath(arguments.config_dir)
        if not os.path.isdir(folder):
            raise ConfigError(f"--config-dir {arguments.config_dir}: there is no such folder ({folder}).")
        path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=path)
    before = HydraConfig.instance().cfg
    try:
        yield hydra.config_loader
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


class _Composer:
    def __init__(self, loader: ConfigLoader, config_name: str, overrides: list[str]) -> None:
        self.loader = loader
        self.config_name = config_name
        self.overrides = overrides

    def is_a_sweep(self) -> bool:
        """Whether ``hydra.mode`` says so."""
        return bool(self._load(self.overrides, RunMode.MULTIRUN, sweeps=False).hydra.mode == RunMode.MULTIRUN)

    def compose(self, multirun: bool) -> Composition:
        if multirun:
            return self._compose_sweep()
        _refuse_sweep_dir(self.overrides)
        _refuse_several(self._parse(self.overrides))
        config = self._load([*self.overrides, "hydra.mode=RUN"], RunMode.RUN)
        return Composition([self._job(config, self.overrides, None)], None, 1, None)

    def _compose_sweep(self) -> Composition:
        master = self._load([*self.overrides, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        HydraConfig.instance().set_config(master)
        sweep_dir = os.path.abspath(str(master.hydra.sweep.dir))
        arguments = self._parse(_as_typed(master.hydra.overrides.task))
        sweeper, launcher = (_target_of(master, part) for part in ("sweeper", "launcher"))
        basic = sweeper.endswith(".BasicSweeper")
        if basic:
            parameters = [f"{key}={value}" for key, value in (master.hydra.sweeper.params or {}).items()]
            arguments = [*self._parse(parameters), *arguments]
        _refuse_several(arguments)
        _refuse_run_dir([*self._parse(_as_typed(master.hydra.overrides.hydra)), *arguments])
        if basic:
            with self._explaining():
                combinations = BasicSweeper.split_arguments(arguments, None)[0]
        else:
            combinations = [[str(a.input_line) for a in arguments if not a.is_sweep_override()]]
        jobs = [self._combine(master, list(chosen), number) for number, chosen in enumerate(combinations)]
        _refuse_shared_folders(jobs)
        return Composition(jobs, sweep_dir, len(jobs) if basic else None, launcher)

    def _combine(self, master: DictConfig, overrides: list[str], number: int) -> Job:
        try:
            shared = _as_typed(master.hydra.overrides.hydra)
            config = self._load([*shared, *overrides], RunMode.RUN)
            OmegaConf.copy_cache(master, config)  # one time and one run_id for all jobs, as Hydra will have it
            return self._job(config, overrides, number)
        except ConfigError as error:
            raise in_combination(overrides, error) from error

    def _job(self, config: DictConfig, overrides: list[str], number: int | None) -> Job:
        """``number`` is the job's place in the sweep, None for a single run."""
        with self._explaining(overrides):
            for component in NAMED_COMPONENTS:  # first of all: the folders' names are made of these
                if isinstance(OmegaConf.select(config, component), DictConfig):
                    check_name(component, OmegaConf.select(config, f"{component}.name"))
            HydraConfig.instance().set_config(config)  # values may refer to ${hydra:...}
            cluster = OmegaConf.select(config, "cluster")  # what the launcher's settings are made of
            check_cluster(OmegaConf.to_container(cluster, resolve=True) if OmegaConf.is_config(cluster) else cluster)
            with read_write(config.hydra), open_dict(config.hydra):
                folder = _settle_folder(config, number)
            launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
            return Job(overrides, plain_config(config, folder), dict(launcher))  # type: ignore[arg-type]

    def _load(self, overrides: list[str], mode: RunMode, sweeps: bool = True) -> DictConfig:
        with self._explaining(overrides):
            return self.loader.load_configuration(self.config_name, overrides, mode, validate_sweep_overrides=sweeps)

    def _parse(self, overrides: list[str]) -> list[Override]:
        with self._explaining():
            return OverridesParser.create(config_loader=self.loader).parse_overrides(overrides)

    @contextmanager
    def _explaining(self, overrides: list[str] | None = None) -> Iterator[None]:
        """What Hydra finds wrong inside becomes a ConfigError.

        Args:
            overrides: those that are composed inside, if not all: of a combination, whose groups are others'.
        """
        try:
            yield
        except MISTAKES as error:
            raise explain(error, Known(self.loader, self.config_name, overrides or self.overrides)) from error


def _settle_folder(config: DictConfig, number: int | None) -> str:
    """Checks the settings that say where the job's folder is, and has Hydra's part of ``config``, which can be written
    to, say it too; returns its path.

    Args:
        number: as of :meth:`_Composer._job`.
    """
    if config.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true: relative paths would lead elsewhere; a run changes no folder.")
    for key in ("run_dir", "sweep_dir"):
        if config[key] == "":  # as of a variable that is not set: it would be the current folder
            raise ConfigError(f"{key}=: is empty; name a folder, or leave it out for a new one.")
    if number is None:
        folder = str(config.hydra.run.dir)
        if folder != config.run_dir:
            raise ConfigError(f"hydra.run.dir={folder}: it follows run_dir; use run_dir={folder}.")
    else:
        config.hydra.job.num = config.hydra.job.id = number
        folder = os.path.join(config.hydra.sweep.dir, config.hydra.sweep.subdir)
    config.hydra.runtime.output_dir = os.path.abspath(folder)
    return os.path.abspath(folder)


def _target_of(master: DictConfig, part: str) -> str:
    """Of Hydra's sweeper or launcher."""
    target = OmegaConf.select(master, f"hydra.{part}._target_")
    if target is None:
        raise ConfigError(f"hydra.{part}: has no _target_, and is what a sweep is made by; leave it as it is.")
    return str(target)


def _as_typed(overrides: ListConfig) -> list[str]:
    """Without resolving what they refer to: that is for each combination to do."""
    words = OmegaConf.to_container(overrides, resolve=False)
    assert isinstance(words, list)
    return [str(word) for word in words]


def in_combination(overrides: list[str], error: ConfigError) -> ConfigError:
    """Returns ``error`` with the combination of the sweep that it is in."""
    return ConfigError(f"in the combination '{' '.join(overrides)}': {error}")


def _refuse_several(overrides: list[Override]) -> None:
    """Hydra would make one of them, with the settings of all."""
    for override in overrides:
        if override.key_or_group in COMPONENTS and isinstance(values := override.value(), list) and len(values) > 1:
            raise ConfigError(
                f"{override.input_line}: would be all of these in one run; a run of each is a sweep: "
                f"-m {override.key_or_group}={','.join(map(str, values))}."
            )


def _refuse_run_dir(overrides: list[Override]) -> None:
    for override in overrides:
        if override.key_or_group in ("run_dir", "hydra.run.dir"):
            raise ConfigError(
                f"{override.input_line}: under -m every job has a folder of its own; "
                "sweep_dir=FOLDER sets where they are."
            )


def _refuse_sweep_dir(overrides: list[str]) -> None:
    """On the command line alone: a file of the user's own may set it for all sweeps."""
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if key == "sweep_dir" and value != "null":
            raise ConfigError(f"{word}: is of a sweep, which needs -m; run_dir=FOLDER sets where a single run is.")


def _refuse_shared_folders(jobs: list[Job]) -> None:
    """The second job in a folder would find the first one's run there, and do nothing."""
    found: dict[str, Job] = {}
    for job in jobs:
        other = found.setdefault(job.config["run_dir"], job)
        if other is job:
            continue
        words = [*other.overrides, *job.overrides]
        differing = [word for word in words if words.count(word) == 1] or job.overrides
        raise ConfigError(
            f"{' and '.join(differing)}: two jobs of the sweep would be one run, in {job.config['run_dir']}; what "
            "makes no other run can only be swept without sweep_dir."
        )
