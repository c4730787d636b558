"""Says how many words the prompts of a dataset have, by task.

python -m posttrain.data.lengths inputs.data=DIR output=DIR
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from posttrain.data.config.lengths import LengthsConfig
from posttrain.data.records import SPLITS, dataset_type, read_records
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.files import write_json_atomic


def run(config: LengthsConfig, context: Context) -> StageResult:
    """Write lengths.json: by task, the quantiles of its prompts' words."""
    data, words = context.inputs["data"], defaultdict(list)
    for split in SPLITS:
        rows: list[Any] = read_records(data / f"{split}.parquet", dataset_type(data))
        for row in rows:
            words[row.task].append(sum(len(message.content.split()) for message in row.prompt))
    quantiles = {task: np.quantile(of_task, config.quantiles).tolist() for task, of_task in sorted(words.items())}
    write_json_atomic(context.output / "lengths.json", {"quantiles": config.quantiles, "words": quantiles})
    longest = max(map(max, words.values()))
    return StageResult(metrics={"longest": longest}, headline=f"up to {longest} words")


if __name__ == "__main__":
    stage_main(run, LengthsConfig, kind="lengths")
