"""Words of the command line, ``key=value``, as Hydra wants them, and what can be said of them before it reads any.

An override of a group (`recipe=demo`, `distributed=ddp`) goes to Hydra as it stands. Any other becomes `++key=value`,
so that Hydra accepts keys that no YAML file spells out; the schema then knows every key and its type. A path is taken
as a shell would: `~/` is the home folder, and no other sign of it means anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from posttrain.pipeline.config.pipeline import StageNode
from posttrain.stage.errors import UsageError, did_you_mean

CONF = "posttrain.conf"
_INNER = ("data/policy",)
"""Groups within a group."""
PATH_KEY = re.compile(r"\+*(paths\.[\w-]+|root|(.+\.)?(path|chat_template_file|schema_file))")
"""Keys whose values are files or folders."""
_STAGE_DISTRIBUTED = re.compile(r"stages\.[\w-]+\.distributed")
"""A stage's own distribution is an option of the group, as the pipeline's is: ``stages.sft.distributed=zero3``."""


def group_options(config_dir: Path | None) -> dict[str, set[str]]:
    """Return the options of every group: ``{"recipe": {"demo", "smollm2_135m/sft_dpo", …}, "data/policy": {…}, …}``.

    A folder within a group is a group too, where the root's defaults choose from it.
    """
    found: dict[str, set[str]] = {}
    roots = [Path(str(resources.files(CONF)))] + ([config_dir] if config_dir is not None else [])
    for root in roots:
        for path in root.rglob("*.yaml"):
            group, _, option = path.relative_to(root).with_suffix("").as_posix().partition("/")
            folder, _, own = option.rpartition("/")
            if option and f"{group}/{folder}" in _INNER:
                found.setdefault(f"{group}/{folder}", set()).add(own)
            elif option:
                found.setdefault(group, set()).add(option)
    return found


def hydra_override(text: str, options: Mapping[str, set[str]]) -> str:
    """Return an override as Hydra wants it; raise UsageError for a form or a group option that does not exist."""
    if text.startswith(("~", "+")):
        return text
    key, equals, value = text.partition("=")
    if _STAGE_DISTRIBUTED.fullmatch(key) and value in options["distributed"]:
        return f"+distributed@{key}={value}"
    if not equals or not key:
        raise UsageError(f"{text!r}: not of the form key=value{_group_meant(text, options)}")
    if key not in options:
        text = with_literal_path(text)
        _check_form(text)
        return f"++{text}"
    if value not in options[key]:
        available = ", ".join(sorted(options[key]))
        raise UsageError(f"{key}={value}: no such {key}{did_you_mean(value, options[key])} (available: {available})")
    return text


def _group_meant(text: str, options: Mapping[str, set[str]]) -> str:
    """Return ``"; did you mean recipe=smoke?"`` for a word that is, or is like, an option of a group."""
    of_group = [group for group, known in options.items() if text in known]
    if of_group:
        group = "recipe" if "recipe" in of_group else of_group[0]
        return f"; did you mean {group}={text}?"
    near = did_you_mean(text, options.get("recipe", ())).partition("'")[2].partition("'")[0]
    return f"; did you mean recipe={near}?" if near else ""


def _check_form(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (override,) = OverridesParser.create().parse_overrides([f"++{text}"])
    except HydraException as error:
        reason = " ".join(str(error).partition("See https")[0].split())
        raise UsageError(f"{text}: {reason}; quote the value, as in key='\"a, b\"'") from None
    if override.is_sweep_override():
        raise UsageError(f"{text}: several values; give one, or a list in brackets: key=[a,b]")


def with_literal_path(text: str) -> str:
    """Return an override whose value is a path, or several, with that path in Hydra's quotes; any other as it is.

    Several are ``[a,b]``. Without the brackets commas separate the values of a sweep, unless there is such a file.
    """
    key, _, value = text.partition("=")
    if not PATH_KEY.fullmatch(key) or value in ("", "null", "???") or value.startswith(("'", '"')):
        return text
    if _exists(value):
        return f"{key}={_quoted(value)}"
    if re.fullmatch(r"\w+\(.*\)", value):  # choice(a,b)
        return text
    if value.startswith("[") and value.endswith("]"):
        inside = value[1:-1]
        plain = inside and not re.search(r"['\"\[\]]", inside)
        return f"{key}=[{','.join(_quoted(part.strip()) for part in inside.split(','))}]" if plain else text
    return f"{key}={','.join(_quoted(part) for part in value.split(','))}"


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError):  # too long for a name, or a home that nobody has
        return False


def _quoted(value: str) -> str:
    path = str(Path(value).expanduser()) if value == "~" or value.startswith("~/") else value
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), path)
    return f"'{escaped}'"


def overridden_keys(overrides: list[str]) -> Iterator[tuple[str, str]]:
    """Yield key and value of every override that is a knob, not a group."""
    for text in overrides:
        key, equals, value = text.lstrip("+").partition("=")
        if equals and "." in key:
            yield key, value


def outvoted(overrides: list[str], nodes: Mapping[str, StageNode | None]) -> list[str]:
    """Return a line for each knob that a user gave for a stage type and the graph sets for a stage of it."""
    given = dict(overridden_keys(overrides))
    lines = []
    for key, value in given.items():
        run, knob = ".".join(key.split(".")[:2]), ".".join(key.split(".")[2:])
        for name, node in nodes.items():
            if node is None or node.run != run or not knob:
                continue
            own, said = f"stages.{name}.with.{knob}", _at(node.overrides, knob)
            if said is not None and own not in given:
                lines.append(
                    f"{key}={value} does not reach stage {name}, whose own value is {said}; give {own}={value}"
                )
    return lines


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
