"""Plant duplicates, leaks, personal data and what looks like them into rows, curate them, and count what was found.

    python scripts/check_curation.py [--rows 20000] [--each 500] [--seed 0] [--workers 1] [--odd KIND]

Prints a line for each kind: the share found (of what is there) or taken for it (of what only looks like it), and the
bound. Exit code 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from judged_curation import AIMS, HARMLESS, curated, missed, shares
from planted_rows import planted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 20_000), ("each", 500), ("seed", 0), ("workers", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--odd", nargs="*", default=(), metavar="KIND", help="print rows of these kinds that were missed or taken"
    )
    options = parser.parse_args()
    rows = planted(options.seed, options.rows, options.each)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        made = curated(Path(folder) / "out", rows, num_workers=options.workers)
        found = shares(rows, made)
    print(f"{len(rows.rows):,} rows, {len(rows.items):,} items, {time.perf_counter() - begun:.1f} s")
    print(f"{'kind':18} {'rows':>6} {'share':>7}  bound")
    for kind, (share, count, _) in found.items():
        bound = f"≤ {AIMS[kind]}" if kind in HARMLESS else f"≥ {AIMS[kind]}"
        print(f"{kind:18} {count:6,} {share:7.4f}  {bound}{'  MISSED' if missed(kind, share) else ''}")
    for kind in options.odd:
        texts = {row["id"]: row for row in rows.rows}
        for name in found[kind][2][:20]:
            print(name, texts[name]["prompt"], "|", texts[name]["completion"], "|", rows.secrets.get(name, ""))
    return int(any(missed(kind, share) for kind, (share, _, _) in found.items()))


if __name__ == "__main__":
    sys.exit(main())
