"""The lineage as a layered graph: parents above children, drawn as SVG whose colours follow the page's style sheet.

Layout in three steps: nodes to layers, with a waypoint in each layer that an edge passes; an order within each layer
that has few crossings; and a place for each that is near its neighbours.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from html import escape
from itertools import pairwise
from statistics import fmean

from posttrain.evaluate.page.lineage import MODEL_KINDS, PARENT_MODEL, Lineage

NODE_WIDTH, NODE_HEIGHT = 166, 40
GAP, MARGIN = 34, 6
"""Between layers, and around the graph."""
WIDEST = 1200
"""Pixels; a graph that would be wider from the top down is drawn from the left, a layer a column, if that is less."""
READABLE = 0.75
"""A graph is not made smaller than this to fit a page: it scrolls sideways instead."""
_SWEEPS = 24

FAMILIES = {
    "sources": "data",
    "dataset": "data",
    "tokens": "data",
    "data_page": "data",
    "model": "model",
    "reward_model": "model",
    "reference_logps": "model",
}
"""Kind of artifact → colour of its box; all others are results."""


@dataclasses.dataclass(frozen=True)
class Room:
    """What a node and a waypoint take up across a layer, and the room between them, in pixels."""

    node: int
    waypoint: int
    gap: int


DOWN, SIDEWAYS = Room(NODE_WIDTH, 16, 18), Room(NODE_HEIGHT, 8, 8)


@dataclasses.dataclass
class Layout:
    """Layers from the top, each a list of ids from the left, and the middle of each id in pixels.

    ``chains`` are the ids that each edge runs through, waypoints included.
    """

    layers: list[list[str]]
    chains: list[list[str]]
    x: dict[str, float]


def lineage_svg(lineage: Lineage, anchors: dict[str, str]) -> str:
    """Return the graph as an SVG element; ``anchors`` maps node ids to the page's ids that the boxes link to."""
    layout, room = lay_out(lineage), DOWN
    if (wide := _extent(lineage, layout, room)) > WIDEST and len(layout.layers) * (NODE_WIDTH + GAP) < wide:
        layout, room = lay_out(lineage, SIDEWAYS), SIDEWAYS
    first = min(x - _size(lineage, name, room) / 2 for name, x in layout.x.items()) - MARGIN
    layer_of = {name: depth for depth, layer in enumerate(layout.layers) for name in layer}
    across = _extent(lineage, layout, room)
    step = GAP + (NODE_HEIGHT if room is DOWN else NODE_WIDTH)
    along = len(layout.layers) * step - GAP + 2 * MARGIN
    width, height = (across, along) if room is DOWN else (along, across)

    def corner(name: str) -> tuple[float, float]:
        """Return the middle of the side at which edges come in."""
        place = layout.x[name] - first, MARGIN + float(layer_of[name] * step)
        return place if room is DOWN else (place[1], place[0])

    edges = [
        _edge([corner(name) for name in chain], _is_descent(lineage, chain[0], chain[-1]), room)
        for chain in layout.chains
    ]
    boxes = []
    for name in lineage.nodes:
        x, y = corner(name)
        left, top = (x - NODE_WIDTH / 2, y) if room is DOWN else (x, y - NODE_HEIGHT / 2)
        boxes.append(_box(lineage, name, left, top, anchors.get(name)))
    return (
        f'<svg class="lineage" role="group" aria-label="Lineage graph: what each artifact was made from" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'style="min-width: {READABLE * width:.0f}px">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto" '
        'markerUnits="userSpaceOnUse">'
        f'<path d="M0 0 8 4 0 8z" class="arrow"/></marker></defs>{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _extent(lineage: Lineage, layout: Layout, room: Room) -> float:
    """Return how many pixels a layout takes across its layers, margins included."""
    ends = [(x - _size(lineage, name, room) / 2, x + _size(lineage, name, room) / 2) for name, x in layout.x.items()]
    return max(end for _, end in ends) - min(start for start, _ in ends) + 2 * MARGIN


def lay_out(lineage: Lineage, room: Room = DOWN) -> Layout:
    """Return where every node goes; the same lineage always gives the same layout."""
    depth = _assign_layers(lineage)
    layers: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for name in lineage.nodes:
        layers[depth[name]].append(name)
    chains = []
    for node in lineage.nodes.values():
        for parent in dict.fromkeys(node.parents.values()):
            waypoints = [f"{parent}→{node.id}@{level}" for level in range(depth[parent] + 1, depth[node.id])]
            for level, waypoint in enumerate(waypoints, start=depth[parent] + 1):
                layers[level].append(waypoint)
            chains.append([parent, *waypoints, node.id])
    above, below = _neighbours(chains)
    layers = _order(layers, above, below)
    return Layout(layers, chains, _place(lineage, layers, above, below, room))


def _assign_layers(lineage: Lineage) -> dict[str, int]:
    """Return the layer of each node: below its parents, and next to its children where it has some."""
    depth = dict(lineage.depth)
    children: dict[str, list[str]] = defaultdict(list)
    for node in lineage.nodes.values():
        for parent in node.parents.values():
            children[parent].append(node.id)
    for name in reversed(lineage.nodes):
        if children[name]:
            depth[name] = min(depth[child] for child in children[name]) - 1
    return depth


def _neighbours(chains: list[list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for upper, lower in pairwise(chain):
            above[lower].append(upper)
            below[upper].append(lower)
    return above, below


def _order(layers: list[list[str]], above: dict[str, list[str]], below: dict[str, list[str]]) -> list[list[str]]:
    """Return the layers ordered by the mean position of their neighbours, sweeping down and up; the best order seen."""
    best, fewest = layers, _crossings(layers, below)
    for sweep in range(_SWEEPS):
        downward = sweep % 2 == 0
        neighbours = above if downward else below
        layers = [list(layer) for layer in layers]
        for layer in layers if downward else reversed(layers):
            position = {name: i for one in layers for i, name in enumerate(one)}
            own = {name: fmean([position[n] for n in neighbours[name]] or [position[name]]) for name in layer}
            layer.sort(key=own.__getitem__)
        crossings = _crossings(layers, below)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _crossings(layers: list[list[str]], below: dict[str, list[str]]) -> int:
    position = {name: i for layer in layers for i, name in enumerate(layer)}
    total = 0
    for layer in layers:
        ends = [(i, position[child]) for i, name in enumerate(layer) for child in below[name]]
        total += sum(a < c and b > d for a, b in ends for c, d in ends)
    return total


def _place(
    lineage: Lineage, layers: list[list[str]], above: dict[str, list[str]], below: dict[str, list[str]], room: Room
) -> dict[str, float]:
    """Return the x of each id: drawn to the mean of its neighbours, as far as those beside it leave room."""
    x: dict[str, float] = {}
    for layer in layers:
        x |= _spread(lineage, layer, dict.fromkeys(layer, 0.0), room)
    for sweep in range(_SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            wanted = {name: fmean([x[n] for n in [*above[name], *below[name]]] or [x[name]]) for name in layer}
            x |= _spread(lineage, layer, wanted, room)
    return x


def _spread(lineage: Lineage, layer: list[str], wanted: dict[str, float], room: Room) -> dict[str, float]:
    """Return the positions nearest to the wanted ones, by squared distance, that keep the order and do not overlap.

    With each id's distance from the left edge of a tightly set layer taken off, what is left is to be made
    non-decreasing, which pooling neighbours that are out of order does.
    """
    offset, offsets = 0.0, []
    for name in layer:
        width = _size(lineage, name, room)
        offsets.append(offset + width / 2)
        offset += width + room.gap
    pools: list[list[float]] = []
    for name, shift in zip(layer, offsets, strict=True):
        pools.append([wanted[name] - shift])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    starts = [fmean(pool) for pool in pools for _ in pool]
    return {name: start + shift for name, start, shift in zip(layer, starts, offsets, strict=True)}


def _size(lineage: Lineage, name: str, room: Room) -> int:
    return room.node if name in lineage.nodes else room.waypoint


def _is_descent(lineage: Lineage, parent: str, child: str) -> bool:
    """Return whether one model was trained from the other."""
    node = lineage.nodes[child]
    return node.parents.get(PARENT_MODEL) == parent and node.kind in MODEL_KINDS


def _edge(points: list[tuple[float, float]], descent: bool, room: Room) -> str:
    """Return a smooth line through the chain: from the far side of the first box to the near side of the last."""
    thick = NODE_HEIGHT if room is DOWN else NODE_WIDTH
    ways = points if room is DOWN else [(y, x) for x, y in points]

    def pair(across: float, along: float) -> str:
        return f"{across:.1f} {along:.1f}" if room is DOWN else f"{along:.1f} {across:.1f}"

    path = f"M{pair(ways[0][0], ways[0][1] + thick)}"
    for (x0, y0), (x1, y1) in pairwise(ways):
        start, end = y0 + thick, y1
        middle = (start + end) / 2
        path += f" C{pair(x0, middle)} {pair(x1, middle)} {pair(x1, end)}"
        if (x1, y1) != ways[-1]:
            path += f" L{pair(x1, y1 + thick)}"
    style = "edge descent" if descent else "edge"
    return f'<path class="{style}" d="{path}" marker-end="url(#arrow)"/>'


def _box(lineage: Lineage, name: str, left: float, y: float, anchor: str | None) -> str:
    node = lineage.nodes[name]
    family = FAMILIES.get(node.kind, "result") if node.manifest is not None else "missing"
    note = node.kind.replace("_", " ") + (f" · {node.key[:8]}" if node.manifest is not None else " · not found")
    drawn = (
        f'<g class="node {family}"><title>{escape(node.name)}</title>'
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="4"/>'
        f'<rect class="mark" x="{left:.1f}" y="{y:.1f}" width="5" height="{NODE_HEIGHT}" rx="2"/>'
        f'<text class="stage" x="{left + 13:.1f}" y="{y + 16:.1f}">{escape(_short(node.stage, 20))}</text>'
        f'<text class="note" x="{left + 13:.1f}" y="{y + 31:.1f}">{escape(_short(note, 27))}</text></g>'
    )
    return f'<a href="#{escape(anchor)}">{drawn}</a>' if anchor else drawn


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
