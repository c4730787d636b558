"""Configuration schemas: one pydantic dataclass per stage, built from plain values with errors a user can mend.

A field made with `speed` changes how fast a stage runs but not what it makes, so it stays out of the artifact's key.
A field made with `external` names a file or folder outside the store, whose contents are part of the key; one made with
`external_function` names a function as ``package.module:function``, and the key covers that module's file.
One made with `hub_revision` says at which revision a name on the Hugging Face Hub is taken; the key covers its commit.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.foreign import foreign_hint

T = TypeVar("T")


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
def schema(cls: type[T]) -> type[T]:
    """Make a class a configuration dataclass: unknown keys are errors, values are checked and converted.

    A field's docstring says what the knob does; `posttrain.pipeline.graph.knobs` reads it when it is asked for.
    """
    made: Any = dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)(cls)
    return made  # type: ignore[no-any-return]


def speed(default: Any, **limits: Any) -> Any:
    """Declare a knob that changes speed or memory only, and so is not part of the key."""
    return Field(default=default, json_schema_extra={"speed": True}, **limits)


def external(default: Any = None, *, usual_suffix: str | None = None, or_hub: bool = False) -> Any:
    """Declare a knob that names an outside file or folder; the key covers its contents, not its path.

    With ``usual_suffix`` a file's suffix decides how it is read, and another than this one is part of the key. With
    ``or_hub`` the knob is a name on the Hugging Face Hub where there is no such folder.
    """
    marks: dict[str, Any] = {"external": True, "usual_suffix": usual_suffix, "or_hub": or_hub}
    return Field(default=default, json_schema_extra=marks)


def hub_revision(name: str, kind: str) -> Any:
    """Declare the revision of what the knob ``name`` beside it names on the Hub: a ``dataset`` or a ``model``.

    The key covers the commit that it stands for (`with_commits`).
    """
    return Field(default=None, json_schema_extra={"hub_revision": [kind, name]})


def external_function() -> Any:
    """Declare a knob that names a user's function, or is None; the key covers its name and its module's own file."""
    return Field(default=None, json_schema_extra={"external_function": True})


def module_file(function: str) -> Path:
    """Return the file of a function's module, found as Python would, but without running any of it.

    A module that is not there gives a path that is not there either: that of its name.
    """
    places: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for part in function.partition(":")[0].split("."):
        spec = PathFinder.find_spec(part, places) if places is not None else None
        places = spec.submodule_search_locations if spec is not None else None
    return Path(spec.origin if spec is not None and spec.origin is not None else function)


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return an instance of a schema from plain values.

    ``where`` is the dotted path of the node, for messages. Raises UsageError that lists every fault in one line each.
    """
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UsageError("\n".join(_explain(cls, fault, where) for fault in error.errors())) from None


def check_given(cls: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for each of some knobs that a schema does not have, or whose value does not fit.

    Others may be missing, and nothing is said of how knobs fit together: for a node that nothing is built from.
    """
    try:
        TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        faults = [fault for fault in error.errors() if fault["type"] not in ("missing", "value_error")]
        if faults:
            raise UsageError("\n".join(_explain(cls, fault, where) for fault in faults)) from None


def _explain(cls: type[Any], fault: Any, where: str) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join([where, *location]) if where else ".".join(location)
    if fault["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key{_meant(_schema_at(cls, location[:-1]), location, fault['input'], where)}"
    message = fault["msg"].removeprefix("Value error, ")
    shown = (
        "" if isinstance(fault["input"], dict) or dataclasses.is_dataclass(fault["input"]) else f"{fault['input']!r}: "
    )
    if fault["type"] == "missing":
        shown = ""
    nested = isinstance(fault["input"], dict) and fault["type"] not in ("missing", "value_error")
    theirs = foreign_hint(".".join(location), fault["input"], where) if nested else ""
    opening = f"{key}: " if key else ""  # knobs that do not go together have no key of their own
    return f"{opening}{shown}{message[0].lower()}{message[1:]}{theirs}"


def _meant(node: Any, location: list[str], value: Any, where: str) -> str:
    """Return what an unknown key may stand for: another tool's name of a knob, one of ours below, or one like it."""
    typed = ".".join(location)
    if hint := foreign_hint(typed, value, where, here_only=True):
        return hint
    if below := _key_below(node, location[-1]):
        return f"; did you mean {below!r}?"
    like = did_you_mean(location[-1], _fields_of(node))
    if isinstance(value, dict) and like:  # a misspelt node; what is below it may have a name that others have too
        return foreign_hint(typed, value, where, whole_only=True) or like
    return foreign_hint(typed, value, where) or like


def _schema_at(annotation: Any, location: list[str]) -> Any:
    """Return the schema at ``location``, through lists, dictionaries and optional values."""
    for name in location:
        if dataclasses.is_dataclass(annotation):
            annotation = typing.get_type_hints(annotation).get(name)
        else:
            annotation = (typing.get_args(annotation) or (None,))[-1]
        if type(None) in typing.get_args(annotation):
            annotation = typing.get_args(annotation)[0]
    return annotation


def _key_below(annotation: Any, word: str) -> str:
    """Return the dotted key of the knob of this name in the schemas within a schema, or an empty string."""
    for name in _fields_of(annotation):
        inner = _schema_at(annotation, [name])
        if word in _fields_of(inner):
            return f"{name}.{word}"
    return ""


def _fields_of(annotation: Any) -> list[str]:
    infos = getattr(annotation, "__pydantic_fields__", {})
    return [info.alias or name for name, info in infos.items()]


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as plain, JSON-ready values, every default written out."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json", by_alias=True)
    return plain


def key_values(config: Any, digest_of: Callable[[Path], str]) -> dict[str, Any]:
    """Return what of a configuration belongs to the artifact's key.

    Speed knobs are left out; each path of an `external` knob is replaced by ``digest_of(path)``, so that moving a file
    changes nothing and editing it changes the key.
    """
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        marks = _marks(config, field.name)
        if marks.get("speed"):
            continue
        if marks.get("external"):
            kept[field.name] = _digest_paths(value, digest_of, marks)
        elif marks.get("external_function") and value is not None:
            kept[field.name] = [value, digest_of(module_file(value))]
        else:
            kept[field.name] = _plain(value, digest_of)
    return kept


def external_paths(config: Any) -> list[Path]:
    """Return every outside file or folder that a configuration names, the files of functions included."""
    paths: list[Path] = []

    def note(path: Path) -> str:
        paths.append(path)
        return ""

    key_values(config, note)
    return paths


def with_commits(config: Any, commit_of: Callable[[str, str, str | None], str | None]) -> Any:
    """Return a configuration in which every `hub_revision` that is in use is ``commit_of(kind, name, revision)``."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind, name = _marks(config, field.name).get("hub_revision", (None, ""))
        if kind is None:
            new = _inner_with_commits(value, commit_of)
        else:
            named = getattr(config, name)
            new = value if named is None or Path(named).exists() else commit_of(kind, named, value)
        if new != value:
            changed[field.name] = new
    return dataclasses.replace(config, **changed) if changed else config


def _inner_with_commits(value: Any, commit_of: Callable[[str, str, str | None], str | None]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return with_commits(value, commit_of)
    if isinstance(value, list):
        return [_inner_with_commits(item, commit_of) for item in value]
    return value


def _plain(value: Any, digest_of: Callable[[Path], str]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return key_values(value, digest_of)
    if isinstance(value, dict):
        return {str(key): _plain(item, digest_of) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, digest_of) for item in value]
    return value


def _digest_paths(value: Any, digest_of: Callable[[Path], str], marks: dict[str, Any]) -> Any:
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [_digest_paths(item, digest_of, marks) for item in value]
    path = Path(value)
    if marks.get("or_hub") and not path.exists():
        return value
    digest = digest_of(path)
    suffix = _reading_suffix(path)
    if marks.get("usual_suffix") in (None, suffix) or digest == str(path):  # a path says its suffix itself
        return digest
    return f"{digest}{suffix}"


def _reading_suffix(path: Path) -> str:
    """Return the suffix that says how a file is read: ``.csv``, or ``.csv.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def _marks(config: Any, name: str) -> dict[str, Any]:
    info = type(config).__pydantic_fields__[name]
    extra = info.json_schema_extra
    return extra if isinstance(extra, dict) else {}
