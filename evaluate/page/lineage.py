"""Lineage: every artifact behind some artifacts, and how they hang together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from posttrain.stage.artifact import Manifest, Parent, is_artifact, read_manifest

PARENT_MODEL = "model"
"""Name of the input through which a model descends from another, and scores from what they score."""

MODEL_KINDS = ("model", "reward_model")
"""Kinds of artifacts that hold weights."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One artifact of the lineage."""

    id: str
    """Its directory, or for a missing one its name and digest."""
    name: str
    kind: str
    stage: str
    key: str
    parents: dict[str, str]
    """Input name → `id` of the parent node."""
    directory: Path | None = None
    manifest: Manifest | None = None
    """None when the artifact is known by its children's manifests only, because it was removed or replaced."""


class Lineage:
    """The nodes by `id`, each after its parents; `depth` is the longest way from a node without parents."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.depth: dict[str, int] = {}

        def measure(node: Node) -> int:
            if node.id not in self.depth:
                self.depth[node.id] = 1 + max((measure(nodes[parent]) for parent in node.parents.values()), default=-1)
            return self.depth[node.id]

        self.nodes = {node.id: node for node in sorted(nodes.values(), key=lambda node: (measure(node), node.id))}

    def of_kind(self, *kinds: str) -> list[Node]:
        """Return the nodes of some kinds that are still there, parents first."""
        return [node for node in self.nodes.values() if node.kind in kinds and node.manifest is not None]

    def model_ancestors(self, node_id: str) -> list[str]:
        """Return the ids of the models that a model was made from, the nearest first."""
        found: list[str] = []
        while (parent := self.nodes[node_id].parents.get(PARENT_MODEL)) is not None:
            found.append(parent)
            node_id = parent
        return found

    def labels(self) -> dict[str, str]:
        """Return a short label for each node: the stage's name, with digits of the key where its kind has several."""
        names = [(node.stage, node.kind) for node in self.nodes.values()]
        return {
            node.id: node.stage if names.count((node.stage, node.kind)) == 1 else f"{node.stage} {node.key[:6]}"
            for node in self.nodes.values()
        }


def walk(directories: Iterable[Path]) -> Lineage:
    """Return the lineage of some artifacts, whose parents are looked for in sibling directories.

    A sibling whose contents are no longer those that the child was made from does not count as its parent.
    """
    nodes: dict[str, Node] = {}
    waiting = [directory.resolve() for directory in directories]
    while waiting:
        directory = waiting.pop()
        if str(directory) in nodes:
            continue
        manifest = read_manifest(directory)
        parents: dict[str, str] = {}
        for name, parent in manifest.parents.items():
            sibling = directory.parent / parent.name
            if is_artifact(sibling) and read_manifest(sibling).digest == parent.digest:
                waiting.append(sibling)
                parents[name] = str(sibling)
            else:
                missing = _missing(parent)
                parents[name] = missing.id
                nodes[missing.id] = missing
        nodes[str(directory)] = Node(
            str(directory), directory.name, manifest.kind, manifest.stage, manifest.key, parents, directory, manifest
        )
    return Lineage(nodes)


def _missing(parent: Parent) -> Node:
    stage, _, key = parent.name.rpartition("-")
    return Node(f"{parent.name}@{parent.digest[:12]}", parent.name, parent.kind, stage or parent.name, key, {})
