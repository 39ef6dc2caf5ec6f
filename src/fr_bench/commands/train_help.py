"""``fr-bench train --help``: the groups, and every setting with its value and what it means.

The meaning of a key is the comment behind it in its YAML file, be that conf/config.yaml, conf/GROUP/NAME.yaml or a file
of the user's own; of a group, the comment in the defaults list; of a choice, the comment at the top of its file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

import yaml

from fr_bench.settings.comparison import flat
from fr_bench.settings.compose import Anatomy, Source

COLUMN = 34  # where descriptions begin
GLOBAL_PACKAGE = "@package"
INTRODUCTION = """\
fr-bench train: one run, or a sweep with -m

  fr-bench train experiment=quickstart             a first run, real images, half a minute
  fr-bench train method=fr k=4 dataset=cifar10     any setting is key=value, any group is group=name
  fr-bench train -m method=bp,fr k=1,2,4           a sweep: every combination, one after the other
  fr-bench train --help method=dni dataset=digits  this help, with the settings of these instead
  fr-bench train k=2 --cfg job                     show the config, run nothing"""
GROUPS = "Groups (group=name; your own files: --config-dir DIR, for example DIR/method/mine.yaml):"
SETTINGS = "Settings (key=value):"
FOOTER = "Flags of Hydra, which composes the config: fr-bench train --hydra-help"


def help_text(anatomy: Anatomy, width: int) -> str:
    """The help, for lines of ``width`` letters."""
    meanings = all_meanings(anatomy.sources)
    headings = {source.name: heading(source.text) for source in anatomy.sources}
    remarks = {source.name: rest_of_heading(source.text) for source in anatomy.sources}
    groups = [
        _entry(group, f"{', '.join(options)} ({meanings.get(f'defaults.{group}', 'of your own')})", width)
        for group, options in anatomy.groups.items()
    ]
    sections: dict[str, list[str]] = {}
    for group, name in anatomy.choices.items():
        title = f"{group}={name}: {headings.get(f'{group}/{name}', '')}".rstrip(": ")
        sections[group] = [textwrap.fill(title, width, break_on_hyphens=False)]
        sections[group] += [f"  {line}".rstrip() for line in remarks.get(f"{group}/{name}", [])]
    rest: list[str] = []
    for key, value in settings(anatomy):
        sections.get(key.partition(".")[0], rest).append(_entry(f"{key}={value}", meanings.get(key, ""), width))
    parts = [INTRODUCTION, GROUPS, "\n".join(groups), *map("\n".join, sections.values()), SETTINGS, "\n".join(rest)]
    return "\n\n".join([*parts, FOOTER])


def settings(anatomy: Anatomy) -> Iterator[tuple[str, str]]:
    """All that can be set, with its value as it is typed; but for what a component is made by, and its name."""
    names = [f"{group}.name" for group in anatomy.groups]
    for key, value in flat(anatomy.config).items():
        if key not in names and not key.endswith(("._target_", "._partial_")):
            yield key, _typed(value)


def all_meanings(sources: Iterable[Source]) -> dict[str, str]:
    """By key. A file that changes what another has set, such as an experiment, comments on the value and not the key:
    the first one counts."""
    found: dict[str, str] = {}
    for source in sources:
        prefix = f"{source.package}." if source.package else ""
        for key, meaning in meanings_in(source.text).items():
            found.setdefault(prefix + key, meaning)
    return found


def meanings_in(text: str) -> dict[str, str]:
    """The comments behind the keys of a YAML file, by dotted key."""
    lines = text.splitlines()
    found: dict[str, str] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.SequenceNode) and prefix == "defaults.":
            for entry in node.value:
                walk(entry, prefix)
        if not isinstance(node, yaml.MappingNode):
            return
        for key, value in node.value:
            is_below = not value.flow_style if isinstance(value, yaml.CollectionNode) else value.style in ("|", ">")
            mark = key.end_mark if is_below else value.end_mark
            _, is_there, comment = lines[mark.line][mark.column :].partition("#")
            if is_there:
                found[f"{prefix}{key.value}"] = comment.strip()
            walk(value, f"{prefix}{key.value}.")

    walk(yaml.compose(text, Loader=yaml.SafeLoader), "")
    return found


def heading(text: str) -> str:
    """The first paragraph of the comment at the top of a YAML file."""
    paragraph: list[str] = []
    for line in text.splitlines():
        words = line.removeprefix("#").strip()
        if words.startswith(GLOBAL_PACKAGE):
            continue
        if not line.startswith("#") or not words:
            break
        paragraph.append(words)
    return " ".join(paragraph)


def rest_of_heading(text: str) -> list[str]:
    """The other lines of that comment: commands, what to expect, what it costs."""
    comment = list(takewhile(lambda line: line.startswith("#"), text.splitlines()))
    lines = [line.removeprefix("#").removeprefix(" ") for line in comment if GLOBAL_PACKAGE not in line]
    return lines[lines.index("") + 1 :] if "" in lines else []


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _entry(left: str, meaning: str, width: int) -> str:
    """A line, or several, with the meaning in a column of its own."""
    indent = " " * COLUMN
    lines = textwrap.wrap(meaning, width - COLUMN, break_on_hyphens=False)
    if len(left) + 4 > COLUMN:
        return "\n".join([f"  {left}", *(indent + line for line in lines)])
    return "\n".join([f"  {left:<{COLUMN - 2}}{lines[0] if lines else ''}".rstrip(), *(indent + x for x in lines[1:])])
