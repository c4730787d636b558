"""Shell completion: the words that may follow a line, and the scripts by which bash, zsh and fish ask for them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

from posttrain.pipeline.config.overrides import group_options
from posttrain.pipeline.graph.knobs import all_knobs
from posttrain.pipeline.runs.rundir import runs_in
from posttrain.pipeline.runs.store import artifact_directories

SCRIPTS = {
    "bash": """_posttrain() {
  local line=${COMP_LINE:0:COMP_POINT} word
  word=${line##* }
  mapfile -t COMPREPLY < <(posttrain completion words -- "$line" 2>/dev/null)
  if [[ $word == *=* ]]; then  # bash takes = for the end of a word
    COMPREPLY=("${COMPREPLY[@]#"${word%="${word##*=}"}="}")
  fi
  [[ ${COMPREPLY[0]:-} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _posttrain posttrain
""",
    "zsh": """#compdef posttrain
_posttrain() {
  local -a found
  found=("${(@f)$(posttrain completion words -- "$LBUFFER" 2>/dev/null)}")
  [[ -n ${found[1]} ]] && compadd -S '' -- $found || _files
}
compdef _posttrain posttrain
""",
    "fish": """complete -c posttrain -f -a '(posttrain completion words -- (commandline -cp) 2>/dev/null)'
""",
}
"""What a shell reads at its start: ``source <(posttrain completion bash)``."""
COMPOSING = ("run", "plan", "config", "why")
NAMING_RUNS = ("status", "cancel", "sync", "resume", "diff", "compare", "rm", "--run")
NAMING_ARTIFACTS = ("show", "verify", "export", "compare", "generate", "rm")


def candidates(line: str, parser: argparse.ArgumentParser, root: Path) -> list[str]:
    """Return the words that the last one of a command line may become."""
    *before, last = line.split(" ")
    said = [word for word in before if word][1:]
    commands = _commands(parser)
    if not said:
        return _beginning(last, commands)
    command = commands.get(said[0])
    if command is None:
        return []
    if last.startswith("-"):
        return _beginning(last, (flag for action in command._actions for flag in action.option_strings))
    if said[-1] == "--run":
        return _beginning(last, _run_names(root))
    found: list[str] = []
    if said[0] in COMPOSING:
        found += _overrides(last)
    if said[0] in NAMING_RUNS:
        found += _beginning(last, _run_names(root))
    if said[0] in NAMING_ARTIFACTS:
        found += _beginning(last, (path.name for path in artifact_directories(root)))
    return found


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(group.choices)


def _run_names(root: Path) -> list[str]:
    return [run.name for run in runs_in(root)] if root.is_dir() else []


def _overrides(word: str) -> list[str]:
    """Return groups with their options, and knobs up to the next dot."""
    options = group_options(None)
    key, equals, _ = word.partition("=")
    if equals:
        return _beginning(word, (f"{key}={option}" for option in sorted(options.get(key, ()))))
    groups = _beginning(word, (f"{group}=" for group in options if group not in ("pipeline", "chat")))
    depth = word.count(".")
    keys = (knob.key for knob in all_knobs() if "NAME" not in knob.key and ".0" not in knob.key)
    next_parts = {_cut(key, depth) for key in keys if key.startswith(word)}
    return [*groups, *sorted(part for part in next_parts if part not in groups)]


def _cut(key: str, depth: int) -> str:
    parts = key.split(".")
    return ".".join(parts[: depth + 1]) + ("." if len(parts) > depth + 1 else "=")


def _beginning(start: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(start)]


def print_completion(what: str, line: str, parser: Callable[[], argparse.ArgumentParser], root: Path) -> int:
    """Print the script of a shell, or with ``words`` what may stand at the end of a line, a word a line."""
    print(SCRIPTS[what] if what in SCRIPTS else "\n".join(candidates(line, parser(), root)), end="")
    return 0
