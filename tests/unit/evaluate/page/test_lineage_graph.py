"""The graph of a lineage with many stages: readable within the width of a page."""

from __future__ import annotations

import re
from pathlib import Path

from report_pipeline import Store

from posttrain.evaluate.page import lineage
from posttrain.evaluate.page.lineage_svg import lineage_svg


def test_sixty_stages_are_drawn_from_the_left_where_they_would_be_too_wide(tmp_path: Path) -> None:
    store = Store(tmp_path)
    base = store.add("base", "model", "train.base")
    ends = {}
    for number in range(20):
        rows = store.add(f"rows_{number}", "dataset", "data.curate")
        sft = store.add(f"sft_{number}", "model", "train.sft", {"model": base, "data": rows})
        ends[str(number)] = store.add(f"dpo_{number}", "model", "train.dpo", {"model": sft})
    svg = lineage_svg(lineage.walk(ends.values()), {})
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    assert width < 1240 and height > 20 * 40
    boxes = [tuple(map(float, box)) for box in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="166"', svg)]
    assert len(set(boxes)) == 61
    assert all(abs(x - u) >= 166 or abs(y - v) >= 40 for (x, y) in boxes for (u, v) in boxes if (x, y) != (u, v))
    assert all(0 <= x <= width - 166 and 0 <= y <= height - 40 for x, y in boxes)


def test_round_after_round_is_drawn_from_the_top_and_never_too_small_to_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    last = store.add("base", "model", "train.base")
    ends = {}
    for number in range(15):
        rows = store.add(f"rows_{number}", "dataset", "data.curate", {"model": last})
        logps = store.add(f"reference_{number}", "reference_logps", "train.reference", {"model": last, "data": rows})
        ends[str(number)] = store.add(f"scores_{number}", "scores", "evaluate.policy", {"model": last, "data": rows})
        last = store.add(f"dpo_{number}", "model", "train.dpo", {"model": last, "data": rows, "reference": logps})
        for use in ("drift", "judgement", "selection"):
            ends[f"{use}{number}"] = store.add(f"{use}_{number}", use, "evaluate.drift", {"model": last})
    svg = lineage_svg(lineage.walk(ends.values()), {})
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    layers = {y for _, y in re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="166"', svg)}
    assert len(layers) > 40 and height > width  # from the left, 40 columns of boxes would be 8,000 pixels
    least = re.findall(r'style="min-width: (\d+)px"', svg)
    assert [abs(int(pixels) - 0.75 * width) < 1 for pixels in least] == [True]
