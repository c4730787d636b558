"""Killed at any moment and started again, curation ends with the dataset that it would have made, for any workers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from forked_stages import run_child
from planted_rows import Words

from posttrain.stage.artifact import read_manifest, verify

ORDER = "steps.order=[quality,language,pii,near_duplicate]"


class Scene:
    """Rows in a number of files, and the stage that curates them."""

    def __init__(self, root: Path, rows: int, shards: int, workers: int) -> None:
        self.root = root
        (root / "rows").mkdir(parents=True)
        words, rng = Words(random.Random(7)), random.Random(3)
        said = [words.text(rng.randint(20, 50)) for _ in range(rows)]
        said += [f"{text} {words.text(1)}" for text in said[: rows // 10]] + said[: rows // 20]
        lines = [
            json.dumps({"prompt": f"{text[:20]}?", "completion": f"{text} joe{place % 5}@mail.org"})
            for place, text in enumerate(said)
        ]
        size = -(-len(lines) // shards)
        for shard in range(shards):
            own = "\n".join(lines[shard * size : (shard + 1) * size])
            (root / "rows" / f"part-{shard}.jsonl").write_text(f"{own}\n")
        sources = json.dumps([{"name": "s", "path": str(root / "rows")}])
        self.output = root / "artifacts" / "rows-0001"
        self.arguments = [f"output={self.output}", "record_type=demonstration", f"sources={sources}", ORDER]
        self.arguments += [f"num_workers={workers}", "on_bad_row=quarantine"]

    def run(self, signal_at: int | None = None, kill_after: float | None = None) -> tuple[int, int]:
        made = run_child("posttrain.data.curate", self.arguments, self.root, signal_at=signal_at, kill_after=kill_after)
        assert made[0] in (0, -9), (self.root / "child.log").read_text()[-2000:]
        return made

    def digest(self) -> str:
        assert verify(self.output) == []
        return read_manifest(self.output).digest

    def clear(self) -> None:
        shutil.rmtree(self.root / "artifacts")
        shutil.rmtree(self.root / "work", ignore_errors=True)


def test_killed_at_three_moments(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 60, 2, 1)
    code, events = scene.run()
    digest = scene.digest()
    assert code == 0 and b"near_duplicate" in (scene.output / "dropped.jsonl").read_bytes()
    for moment in (events // 3, events // 2, events - 2):
        scene.clear()
        assert scene.run(signal_at=moment)[0] == -9
        assert scene.run()[0] == 0
        assert scene.digest() == digest


@pytest.mark.slow
def test_killed_at_ten_moments_for_one_two_and_seven_shards_and_workers(tmp_path: Path) -> None:
    calm = Scene(tmp_path / "calm", 1200, 1, 1)
    calm.run()
    rng = random.Random(1)
    for parts in (1, 2, 7):
        scene = Scene(tmp_path / str(parts), 1200, parts, parts)
        _, events = scene.run()
        assert scene.digest() == calm.digest()
        for kill in range(10):
            scene.clear()
            moment = {"signal_at": rng.randint(1, events)} if kill % 2 else {"kill_after": rng.uniform(0.1, 5)}
            scene.run(**moment)  # type: ignore[arg-type]  # one or the other
            assert scene.run()[0] == 0
            assert scene.digest() == calm.digest(), (parts, moment)
