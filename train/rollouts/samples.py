"""Responses of each rollout that are kept for people, in ``samples.jsonl``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from posttrain.data.messages import Conversation
from posttrain.stage.artifact import LOGS
from posttrain.train.rollouts.episodes import Episode
from posttrain.train.rows.dataset import Row


@dataclasses.dataclass(frozen=True)
class SampleLog:
    """The file of the first rank."""

    path: Path
    prompts: Sequence[Row]
    rows: int
    """Responses of each rollout that are kept."""
    main_process: bool

    def show(self, phase: int, step: int, episodes: Sequence[Episode]) -> None:
        """Append some responses of a rollout; a rollout that is done again stands there twice."""
        if not self.main_process:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for episode in episodes[: self.rows]:
                prompt = Conversation.from_json(self.prompts[episode.row]["conversation"]).messages
                row = {"rollout": phase, "step": step, "prompt": prompt, "response": episode.text}
                row |= {"reasoning": episode.reasoning} if episode.reasoning else {}
                row |= {"score": round(episode.score, 4), "ended": episode.ended, **episode.components}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def keep(self, artifact: Path) -> None:
        """Copy the file to the logs of an artifact, which its digest leaves out."""
        if self.main_process:
            (artifact / LOGS).mkdir(exist_ok=True)
            shutil.copy2(self.path, artifact / LOGS / self.path.name)
