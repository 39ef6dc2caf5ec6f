"""Turns the mistakes that Hydra and OmegaConf find into one message that says how to put them right."""

from __future__ import annotations

import contextlib
import inspect
import re
from dataclasses import dataclass
from pydoc import locate
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from fr_bench.errors import ConfigError, NoSuchChoice, called, meant, nearest, suggestion
from fr_bench.settings.config import COMPONENTS

NUMBER = "Union[int, float]"
WHAT_IS_MEANT = {
    "Integer": "an integer", "Float": "a number", NUMBER: "a number", "string": "a text", "bool": "true or false",
}  # fmt: skip
WRONG_TYPE = (
    r"could not be converted to (\w+)|Cannot convert .* to (string)|not a valid (bool)|incompatible with type hint "
    rf"'({re.escape(NUMBER)})'"
)
# Hydra raises some as a plain ValueError, OmegaConf lets an AttributeError through.
MISTAKES = (HydraException, OmegaConfBaseException, ValueError, AttributeError, YAMLError)
GLOBAL_GROUPS = ("experiment", "debug", "local")


@dataclass(frozen=True)
class Known:
    """What could have been meant: keys and groups, looked up only once something is wrong."""

    loader: ConfigLoader
    config_name: str
    overrides: list[str]

    def config(self) -> DictConfig | None:
        """The config with the chosen groups but no other overrides; None if not even the defaults compose."""
        groups = self.groups()
        choices = [override for override in self.overrides if override.partition("=")[0] in groups]
        for overrides in (choices, []):
            with contextlib.suppress(*MISTAKES):
                return self.loader.load_configuration(self.config_name, overrides, RunMode.MULTIRUN)
        return None

    def given(self, key: str) -> str:
        """The override that sets ``key``, as it was typed; ``key`` itself if none does."""
        return next((text for text in self.overrides if text.lstrip("+~").partition("=")[0] == key), key)

    def referring(self, to: str = "") -> str | None:
        """The first override that refers to something (``${...}``) whose name begins with ``to``."""
        return next((text for text in self.overrides if f"${{{to}" in text), None)

    def culprit(self) -> str | None:
        """The first override that does not compose by itself, for a message that does not name it."""
        return next((override for override in self.overrides if not self.composes(override)), None)

    def composes(self, override: str) -> bool:
        """Whether ``override`` alone is none of the mistakes that composing finds."""
        return self._with(override) is not None

    def options_with(self, key: str) -> list[str]:
        """The choices ``group=option`` that have ``key``, which begins with the group and a dot."""
        group, *sections, last = key.split(".")
        found = []
        for option in self.loader.get_group_options(group):
            node: Any = self._with(f"{group}={option}")
            for section in (group, *sections):
                node = _child(node, section)
            if last in _keys(node):
                found.append(f"{group}={option}")
        return found

    def _with(self, override: str) -> DictConfig | None:
        with contextlib.suppress(Exception):  # a file of the user's own: the mistake at hand is another
            return self.loader.load_configuration(self.config_name, [override], RunMode.MULTIRUN)
        return None

    def groups(self) -> list[str]:
        """The groups of our own, such as ``method``."""
        return [group for group in self.loader.list_groups("") if group != "hydra"]


def explain(error: Exception, known: Known) -> ConfigError:
    """Returns the ConfigError to raise instead of ``error``."""
    message = str(error)
    if isinstance(error, YAMLError):
        return ConfigError(_not_yaml(error))
    if isinstance(error, OverrideParseException):
        return ConfigError(_unreadable(error, known))
    if isinstance(error, MissingConfigException):
        return _not_found(error, known)
    several = re.match(r"Ambiguous value for argument '(.+?)'\n|Sweep parameters '(.+)' requires", message)
    if several:
        given = several[1] or several[2]
        return ConfigError(f"{given}: several values make a sweep, which needs -m; a list is written KEY=[1,2].")
    unknown = re.match(r"(?:In '.*?': )?Could not override '([^']+)'", message)
    if unknown:
        return ConfigError(_unknown_key(unknown[1], known))
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, OmegaConfBaseException):
        place = re.match(r"In '([^']+)'", message)
        in_file = f"in {place[1]}.yaml: " if place and place[1] != known.config_name else ""
        return ConfigError(in_file + _bad_value(cause, message, known))
    culprit = known.culprit()
    if culprit is not None and culprit.startswith("+") and known.composes(plain := culprit.lstrip("+")):
        return ConfigError(f"{culprit}: leave out the +, which is for what is not there yet: {plain}.")
    return ConfigError(f"{culprit}: {_one_line(message)}." if culprit else f"{_one_line(message)}.")


def _not_yaml(error: YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = "a file of the config" if mark is None else f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
    return f"{place}: is not YAML: {_one_line(getattr(error, 'problem', None) or str(error))}."


def _unreadable(error: OverrideParseException, known: Known) -> str:
    if "=" not in error.override and not error.override.startswith("~"):
        keys = [*_keys(known.config()), *known.groups()]
        hint = nearest(error.override, [f"{key}=VALUE" for key in keys if key[0] == error.override[0]])
        return f"'{error.override}' is not a setting: write key=value, for example k=4.{hint}"
    key, _, value = error.override.partition("=")
    if value.endswith(",") or value.count("[") > value.count("]"):
        return (
            f"cannot read '{error.override}': a blank ends a word; write the values of {key} without any, or in quotes."
        )
    detail = _one_line(error.message.split("\nSee https://")[0])
    return f"cannot read '{error.override}': {detail}. Special characters need quotes: 'key=\"a b\"'."


def _not_found(error: MissingConfigException, known: Known) -> ConfigError:
    path = error.missing_cfg_file
    if path is None:
        return ConfigError(_one_line(str(error)))
    if error.options is not None:
        group, _, choice = path.rpartition("/")
        if choice == "submitit_slurm":
            return ConfigError(
                f"{group}={choice} (which cluster=slurm chooses): hydra-submitit-launcher is not installed; "
                "pip install '.[slurm]' in the repository."
            )
        return NoSuchChoice(group, choice, error.options)
    if path == known.config_name:
        found = known.loader.get_group_options("", ObjectType.CONFIG)
        names = [name for name in found if name != "config_schema" and not name.startswith("_")]
        return ConfigError(f"--config-name {path}: not found.{nearest(path, names)} Available: {', '.join(names)}.")
    place = _one_line(str(error).splitlines()[0])
    return ConfigError(f"a defaults list names '{path}', which does not exist: {place}.")


def _unknown_key(key: str, known: Known) -> str:
    if key in known.groups():  # a group of the user's own, which no defaults list mentions
        return f"{key}: is not in the defaults list; add it with +{key}=NAME."
    config = known.config()
    node: Any = config
    parents: list[str] = []
    *path, _ = parts = key.split(".")
    for part in path:
        child = _child(node, part)
        if not isinstance(child, DictConfig):
            break
        node, parents = child, [*parents, part]
    wrong = parts[len(parents)]
    choices = _keys(node)
    given = known.given(key)
    if wrong in choices:
        return f"{given}: {'.'.join([*parents, wrong])} is a single value, not a section."
    if parents:
        section = ".".join(parents)
        is_component = parents[0] in COMPONENTS
        elsewhere = known.options_with(key) if is_component else []
        hint = "" if elsewhere else suggestion(f"{section}.{name}" for name in meant(wrong, choices))
        others = f" It is a key of {', '.join(elsewhere)}." if elsewhere else ""
        own = f" A key that is meant to be new is written +{key}=..." if is_component and _may_take(node, wrong) else ""
        return f"{given}: unknown key '{key}'.{hint} {section} has: {', '.join(_shown(choices))}.{others}{own}"
    choices = [*choices, *known.groups()]
    # Not by likeness alone: what is closest of all keys of all sections would often be far from what is meant.
    hint = suggestion([] if called(wrong, choices) else _further_down(wrong, config)) or nearest(wrong, choices)
    return f"{given}: unknown key '{key}'.{hint} Known keys: {', '.join(sorted({*choices}))}."


def _further_down(name: str, config: Any) -> list[str]:
    """The keys called ``name`` that are the least sections down."""
    found = [full for full in _leaves(config) if called(name, [full.rpartition(".")[2]])]
    depth = min((full.count(".") for full in found), default=0)
    return [full for full in found if full.count(".") == depth]


def _shown(keys: list[str]) -> list[str]:
    """Without what says how a section becomes an object, which nobody sets on the command line."""
    return [key for key in keys if not key.startswith("_")]


def _may_take(node: DictConfig, name: str) -> bool:
    """Whether what ``node`` calls has an argument ``name``, as far as it tells."""
    try:
        parameters = inspect.signature(locate(str(node._get_node("_target_")))).parameters  # type: ignore[arg-type]
    except Exception:  # whatever the import of a user's own module raises: the mistake at hand is another
        return True
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _bad_value(error: OmegaConfBaseException, message: str, known: Known) -> str:
    key = str(error.full_key or error.key or known.referring() or "a setting")
    first_line = str(error.msg or error).splitlines()[0]
    missing = re.search(r"Missing mandatory value: (\S+)", first_line)
    if missing or isinstance(error, MissingMandatoryValue):
        key = missing[1] if missing else key
        own = "a primary config of your own starts with `defaults: [config, _self_]`"
        return f"{key}: has no value; set {key}=VALUE ({own})."
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        if key in GLOBAL_GROUPS:
            return f"its settings landed under '{key}': begin the file with the line `# @package _global_`."
        return _unknown_key(key, known)
    if isinstance(error, ValidationError):
        override = re.match(r"Error merging override (.*)", message)
        given = override[1] if override else key
        converted = re.search(WRONG_TYPE, first_line)
        if converted:
            expected = WHAT_IS_MEANT.get(next(filter(None, converted.groups())), first_line)
            value = re.match(r"Value (.*?)(?: of type .*| is not .*)?$", first_line)
            subject = "" if given.startswith(f"{key}=") or given == key else f"{key} "
            return f"{given}: {subject}must be {expected}{f', not {value[1]}' if value else ''}."
        if "not Optional" in first_line:
            return f"{given}: cannot be null."
        if "is not a ListConfig" in first_line:
            return f"{given}: must be a list, such as {key}=[1,2]."
        if "is not a subclass of" in first_line and (section := _section(key, known)):
            settings = ", ".join(f"{key}.{name}" for name in _shown(section))
            return f"{given}: is a section; set one of {settings}."
        return f"{given}: {first_line}."
    if lost := re.match(r"Interpolation key '([^']+)' not found", first_line):
        if (given := known.given(lost[1])).startswith("~"):
            return f"{given}: cannot be left out, as {key} refers to it."
        key = known.referring(lost[1]) or key
    return f"{key}: {first_line}."


def _section(key: str, known: Known) -> list[str]:
    config = known.config()
    node = None if config is None else OmegaConf.select(config, key)
    return _keys(node)


def _child(node: Any, key: str) -> Any:
    return node._get_node(key, validate_access=False) if isinstance(node, DictConfig) else None


def _keys(node: Any) -> list[str]:
    return [str(key) for key in node if key != "hydra"] if isinstance(node, DictConfig) else []


def _leaves(node: Any, prefix: str = "") -> list[str]:
    found = []
    for key in _keys(node):
        child = node._get_node(key)
        found += _leaves(child, f"{prefix}{key}.") if isinstance(child, DictConfig) else [prefix + key]
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
