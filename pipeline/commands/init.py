"""`posttrain init`: looks at a folder of data, proposes a recipe, and writes it down with comments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from posttrain.pipeline.local.launch import visible_gpus
from posttrain.stage.errors import EXIT_DONE, UsageError

KINDS = {
    "comparison": "comparisons",
    "unpaired": "preferences",
    "demonstration": "demonstrations",
    "evaluation": "items",
}
"""Record type → the path of the recipes ``own/…`` that takes such a file."""
METHODS = {
    "sft": "answers to learn from, nothing to compare",
    "sft_dpo": "comparisons: the cheapest way to use them",
    "sft_kto": "single answers called good or bad",
    "sft_reward_dpo": "comparisons, and a reward model that judges the result too",
    "sft_reward_ppo": "comparisons, and the model has to get better where the data has no answers",
}
NEEDS = {
    "sft": ("demonstrations",),
    "sft_dpo": ("demonstrations", "comparisons"),
    "sft_kto": ("demonstrations", "preferences"),
    "sft_reward_dpo": ("demonstrations", "comparisons"),
    "sft_reward_ppo": ("demonstrations", "comparisons"),
}


def init(data: Path | None, model: str | None, method: str | None, out: Path, ask: bool) -> int:
    """Write a recipe for a user's model and data, and say how to run it.

    What is not given is asked for where ``ask``, and otherwise proposed. Raises UsageError for data that fits no
    recipe, and where ``out`` is there already.
    """
    if out.exists():
        raise UsageError(f"--out {out}: is there already; give another name, or delete it")
    data = data or Path(_ask("Folder or file of your data", "", ask, "--data"))
    found = files_by_kind(data)
    for kind, paths in found.items():
        print(f"{kind:<15} {', '.join(str(path) for path in paths)}")
    if not found:
        raise UsageError(f"--data {data}: no file of it has a shape that is known; docs/rows.md lists them")
    proposed = propose(found)
    if ask and method is None:
        for name, why in METHODS.items():
            print(f"  {name:<15} {why}{'   ← proposed' if name == proposed else ''}")
    method = method or _ask("Method", proposed, ask, "--method")
    lacking = [kind for kind in NEEDS.get(method, ()) if kind not in found]
    if method not in METHODS or lacking:
        needs = f"needs {', '.join(lacking)}, which {data} lacks" if lacking else f"one of {', '.join(METHODS)}"
        raise UsageError(f"--method {method}: {needs}")
    model = model or _ask("Model: a folder, or a name on the Hugging Face Hub", "", ask, "--model")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(recipe_text(method, model, found, out.stem, len(visible_gpus())), encoding="utf-8")
    print(f"wrote {out}\n\nnext:\n  posttrain plan recipe={out}\n  posttrain run recipe={out} --dry-run")
    print(f"  posttrain run recipe={out}")
    return EXIT_DONE


def _ask(question: str, proposed: str, ask: bool, flag: str) -> str:
    if ask:
        print(f"{question}{f' [{proposed}]' if proposed else ''}: ", end="", flush=True)
        answer = sys.stdin.readline().strip() or proposed
        if answer:
            return answer
    elif proposed:
        return proposed
    raise UsageError(f"{flag}: missing; {question[0].lower()}{question[1:]}")


def files_by_kind(data: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by the path of a recipe that takes them, told by their first rows.

    What no recipe takes is named on stderr. Raises UsageError when there is no such folder or file.
    """
    if not data.exists():
        raise UsageError(f"--data {data}: no such file or folder")
    command = [sys.executable, "-m", "posttrain.data.shapes", str(data)]  # a process of its own: it loads readers
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"--data {data}: {(done.stderr.splitlines() or ['not readable'])[-1]}")
    found: dict[str, list[Path]] = {}
    for shape in json.loads(done.stdout):
        if shape["record_type"] is None:
            print(f"note: {shape['path']}: not taken: {shape['why']}", file=sys.stderr)
        else:
            found.setdefault(KINDS[shape["record_type"]], []).append(Path(shape["path"]))
    return found


def propose(found: dict[str, list[Path]]) -> str:
    """Return the method that uses most of what there is at the least cost."""
    if "demonstrations" not in found:
        raise UsageError(f"there is no file of demonstrations, only {', '.join(found)}; every recipe begins with SFT")
    return "sft_dpo" if "comparisons" in found else "sft_kto" if "preferences" in found else "sft"


def recipe_text(method: str, model: str, found: dict[str, list[Path]], name: str, gpus: int) -> str:
    """Return a recipe of a user's own, with comments that say what to change."""

    def shown(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    taken = [*NEEDS[method], *(["items"] if "items" in found else [])]
    files = {kind: [str(path.resolve()) for path in found[kind]] for kind in taken}
    paths = [f"  {kind}: {shown(each[0] if len(each) == 1 else each)}" for kind, each in files.items()]
    hardware = {0: "cpu", 1: "gpu1"}.get(gpus, "gpu8" if gpus >= 8 else "gpu1")
    local = str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model
    lines = [
        "# @package _global_",
        f"# {METHODS[method][0].upper()}{METHODS[method][1:]}.",
        "#",
        f"#   posttrain run recipe={name}.yaml",
        "#",
        "# Written by `posttrain init`; change what you like. `posttrain config KEY` says what a knob does.",
        "defaults:",
        f"  - own/{method} # what it builds on: posttrain config recipe={name}.yaml shows every value and its origin",
        f"  - override /hardware: {hardware} # or cpu, gpu1, gpu8: precision and sizes for all stages",
        "  - override /adapter: lora # or full: train every weight",
        "  - _self_",
        "",
        f"name: {yaml.safe_dump(name, default_flow_style=True).split(chr(10))[0]}",
        "paths:",
        f"  model: {shown(local)}",
        *paths,
        "",
        "data:",
        "  tokenize: { max_length: 1024 } # tokens of prompt and response; longer rows are dropped and counted",
        "train:",
        "  sft: { epochs: 3, global_batch_size: 16 } # of a few hundred rows; fewer epochs for many thousands",
    ]
    if "dpo" in method:
        lines.append("  dpo: { beta: 0.1, global_batch_size: 16 } # a lower beta goes farther from the SFT model")
    return "\n".join(lines) + "\n"
