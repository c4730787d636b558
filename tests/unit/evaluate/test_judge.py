"""A judge behind a real connection: which response wins, what it is asked, what it costs, and whom it agrees with."""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from build_rows import comparison, messages

from posttrain.data.records import Comparison, write_dataset
from posttrain.evaluate import judge
from posttrain.evaluate.config.judge import JudgeConfig
from posttrain.evaluate.measure.item_scores import ScoredItem, write_items
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

PANDALM = Path(__file__).resolve().parents[4] / "shared" / "data" / "pandalm" / "testset-v1.json"


class Court:
    """A server whose replies are those of ``rule``; it keeps what it is asked. None is the status 401."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.rule: Callable[[str], str | None] = lambda question: "[[C]]"
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                question = body["messages"][0]["content"]
                reply = outer.rule(question) if self.path == "/v1/chat/completions" else None
                self.send_response(200 if reply is not None else 401)
                self.end_headers()
                if reply is not None:
                    outer.asked.append(question)
                    self.wfile.write(json.dumps({"choices": [{"message": {"content": reply}}]}).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()


@pytest.fixture
def court() -> Iterator[Court]:
    court = Court()
    yield court
    court.server.shutdown()
    court.thread.join()
    court.server.server_close()


class Bench:
    """A folder with inputs of the stage, which is run on them."""

    def __init__(self, root: Path, court: Court) -> None:
        self.root, self.court, self.runs = root, court, 0

    def scores(self, name: str, answers: list[str], language: str = "en") -> Path:
        folder = self.root / name
        folder.mkdir()
        items = [
            ScoredItem(str(n), "talk", language, f"ask {n}", text, "", None, "exact", 1.0, None, True)
            for n, text in enumerate(answers)
        ]
        write_items(folder, items)
        return folder

    def human(self, records: list[Comparison]) -> Path:
        folder = self.root / "human"
        folder.mkdir()
        write_dataset(folder, records, Comparison)
        return folder

    def run(self, inputs: dict[str, Path], work: str = "work", **config: Any) -> tuple[StageResult, dict[str, Any]]:
        self.runs += 1
        output = self.root / f"out-{self.runs}"
        output.mkdir()
        (self.root / work).mkdir(exist_ok=True)
        model = {"model": "m", "url": f"http://127.0.0.1:{self.court.server.server_port}", **config.pop("judge", {})}
        spec = StageSpec("j", "evaluate.judge", "p", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
        context = Context(spec, inputs, output, self.root / work, NullTracker(), main_process=True)
        result = judge.run(build(JudgeConfig, {"judge": model, **config}, "evaluate.judge"), context)
        self.lines = [json.loads(line) for line in (output / "judgements.jsonl").read_text().splitlines()]
        return result, json.loads((output / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture
def bench(tmp_path: Path, court: Court) -> Bench:
    return Bench(tmp_path, court)


def responses_in(question: str) -> tuple[str, str]:
    found = re.search(r"\[Response A\]\n(.*?)\n\[End.*\[Response B\]\n(.*?)\n\[End", question, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def fair(question: str) -> str:
    """Prefer the response that begins with the higher number."""
    one, other = (int(text.split()[0]) for text in responses_in(question))
    return "I see [[B]] and so on.\n" + ("[[A]]" if one > other else "[[B]]" if one < other else "[[C]]")


def loves_the_first(question: str) -> str:
    """Prefer the first response, unless the second is better by 3."""
    one, other = (int(text.split()[0]) for text in responses_in(question))
    return "[[B]]" if other - one >= 3 else "[[A]]"


BEFORE = ["5 b"] * 40
AFTER = ["7 a"] * 20 + ["5 c"] * 10 + ["1 d"] * 10


def test_both_orders_are_asked_and_wins_ties_and_losses_counted(bench: Bench) -> None:
    bench.court.rule = fair

    result, summary = bench.run({"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)})

    items = summary["items"]
    assert items["overall"]["win_rate"]["value"] == pytest.approx((20 + 5) / 40)
    assert items["overall"]["ties"] == 0.25
    assert (items["position"]["biased"], items["position"]["orders_disagree"]) == (False, 0)
    assert Counter(bench.court.asked).most_common(1)[0][1] == 1
    assert result.metrics["calls"] == len(bench.court.asked) == 80
    assert result.headline.startswith("win rate 0.62 [")
    assert result.headline.endswith("; people's agreement with it is not known")
    assert [line["verdict"] for line in bench.lines][::10] == ["second", "second", "tie", "first"]


def test_a_love_for_a_place_is_found_and_decides_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.court.rule = loves_the_first

    result, summary = bench.run({"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)})

    position = summary["items"]["position"]
    # Of 30 pairs the orders disagree; of 10, both say that the one is better by 4.
    assert position["first"]["value"] == pytest.approx((2 * 30 + 10) / 80)
    assert position["biased"] and position["orders_disagree"] == 0.75
    assert summary["items"]["overall"]["win_rate"]["value"] == pytest.approx(15 / 40)
    assert "biased: the first place wins 88%" in result.headline
    assert "the judge prefers a place" in caplog.text


def test_what_was_cut_off_goes_on_without_a_repeated_call(bench: Bench) -> None:
    inputs = {"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)}
    bench.court.rule = lambda question: fair(question) if len(bench.court.asked) < 30 else None
    with pytest.raises(PosttrainError, match="HTTP 401"):
        bench.run(inputs, judge={"max_concurrent": 1})
    first = len(bench.court.asked)
    bench.court.rule = fair

    again, summary = bench.run(inputs)
    once_more, same = bench.run(inputs)

    assert first == 30
    assert again.metrics["calls"] == 50
    assert once_more.metrics["calls"] == 0
    assert same == summary
    assert max(Counter(bench.court.asked).values()) == 1


def test_stages_may_share_a_cache_and_a_budget_is_kept_before_the_first_call(bench: Bench) -> None:
    inputs = {"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)}
    bench.court.rule = fair
    shared = {"cache": str(bench.root / "replies.sqlite")}
    bench.run(inputs, work="one", judge=shared, max_items=10)

    with pytest.raises(UsageError, match=r"evaluate.judge.judge.max_calls=59: 60 of 80 questions are new"):
        bench.run(inputs, work="other", judge={**shared, "max_calls": 59})
    assert len(bench.court.asked) == 20
    result, _ = bench.run(inputs, work="other", judge={**shared, "max_calls": 60})
    assert result.metrics["calls"] == 60


def test_people_are_asked_for_beside_every_use(bench: Bench) -> None:
    records = [
        comparison(["5 x", "3 y"] if first else ["3 x", "5 y"], [1, 2] if first == agrees else [2, 1], id=f"{first}{n}")
        for first in (True, False)
        for n, agrees in enumerate([True] * 20 + [False] * 5)
    ]
    records = [record.model_copy(update={"prompt": messages(f"ask {record.id}")}) for record in records]
    bench.court.rule = fair

    result, summary = bench.run({"human": bench.human(records)})

    # The table is [[20, 5], [5, 20]]: 0.8 agreed where 0.5 is chance.
    assert summary["human"]["overall"]["same"]["value"] == pytest.approx(0.8)
    kappa = summary["human"]["overall"]["kappa"]
    assert kappa["value"] == pytest.approx((0.8 - 0.5) / 0.5)
    assert kappa["low"] < 0.6 < kappa["high"]
    assert result.headline.startswith("kappa to people 0.60 [")


def test_grades_follow_the_rubric_of_the_language(bench: Bench) -> None:
    inputs = {"before": bench.scores("before", BEFORE, "de-AT"), "after": bench.scores("after", AFTER, "de-AT")}

    def grades(question: str) -> str:
        found = re.search(r"\[Response\]\n(\d)", question)
        assert "Gut ist, was kurz ist." in question and found is not None
        return f"[[{found[1]}]]"

    bench.court.rule = grades
    rubrics = {"de": "Gut ist, was kurz ist.", "default": "Be kind."}
    _, summary = bench.run(inputs, mode="rubric", judge={"rubrics": rubrics})

    mean = (20 * 6 + 10 * 4 + 0) / 40 / 9
    assert summary["items"]["before"]["value"] == pytest.approx(4 / 9)
    assert summary["items"]["after"]["value"] == pytest.approx(mean)
    assert summary["items"]["rise"]["value"] == pytest.approx(mean - 4 / 9)
    assert summary["items"]["overall"]["win_rate"]["value"] == pytest.approx(25 / 40)


def test_replies_without_a_verdict_are_counted_and_alone_are_an_error(bench: Bench) -> None:
    inputs = {"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)}
    bench.court.rule = lambda question: "Both are fine." if "ask 7\n" in question else fair(question)

    result, _ = bench.run(inputs)

    assert result.metrics["unread"] == 1
    assert bench.lines[7]["verdict"] is None
    bench.court.rule = lambda question: "I would rather not say."
    with pytest.raises(PosttrainError, match="no verdict in the replies about 40 pairs; the first reply ends 'I would"):
        bench.run(inputs, work="other")


@pytest.mark.parametrize(
    ("given", "message"),
    [((), "nothing to judge"), (("after",), "inputs.before is missing"), (("before", "strange"), "share no item")],
)
def test_inputs_that_cannot_be_judged_are_refused(bench: Bench, given: tuple[str, ...], message: str) -> None:
    found = {name: bench.scores(name, BEFORE[:3]) for name in given}
    if "strange" in found:
        strange = found.pop("strange")
        write_items(strange, [])
        found["after"] = strange
    with pytest.raises(UsageError, match=message):
        bench.run(found)
    assert bench.court.asked == []


def test_a_key_that_is_not_set_is_said(bench: Bench) -> None:
    inputs = {"before": bench.scores("before", BEFORE), "after": bench.scores("after", AFTER)}
    with pytest.raises(UsageError, match="api_key_variable: NO_SUCH_KEY is not set"):
        bench.run(inputs, judge={"api_key_variable": "NO_SUCH_KEY"})


@pytest.mark.skipif(not PANDALM.exists(), reason="needs PandaLM's test set in ../shared/data")
def test_agreement_with_people_on_pandalm(bench: Bench) -> None:
    rows = json.loads(PANDALM.read_text(encoding="utf-8"))[:100]
    labels = {row["idx"]: Counter(row[f"annotator{n}"] for n in (1, 2, 3)).most_common(1)[0][0] for row in rows}
    ranks = {0: [1, 1], 1: [1, 2], 2: [2, 1]}
    records = [
        comparison([row["response1"], row["response2"]], ranks[labels[row["idx"]]], id=str(row["idx"]))
        for row in rows
        if row["response1"] != row["response2"]
    ]
    records = [
        r.model_copy(update={"prompt": [r.prompt[0].model_copy(update={"content": f"case {r.id}"})]}) for r in records
    ]
    errs = {record.id for record in random.Random(0).sample(records, 25)}
    truth = {record.id: record.ranks for record in records}
    texts = {record.id: record.responses[0].content for record in records}

    def judges(question: str) -> str:
        number = re.search(r"case (\d+)\n", question)
        assert number is not None
        one, other = truth[number[1]] if number[1] not in errs else truth[number[1]][::-1]
        straight = f"[Response A]\n{texts[number[1]]}\n" in question
        lead = (other - one) * (1 if straight else -1)
        return "[[A]]" if lead > 0 else "[[B]]" if lead < 0 else "[[C]]"

    bench.court.rule = judges
    _, summary = bench.run({"human": bench.human(records)})

    wrong = sum(truth[record][0] != truth[record][1] for record in errs)
    assert summary["human"]["overall"]["same"]["value"] == pytest.approx(1 - wrong / len(records))
    assert not summary["human"]["position"]["biased"]
    bench.court.rule = lambda question: "[[A]]" if hash_of(question) < 0.6 else judges(question)
    _, biased = bench.run({"human": bench.root / "human"}, work="other")
    assert biased["human"]["position"]["biased"]
    assert biased["human"]["overall"]["kappa"]["high"] < summary["human"]["overall"]["kappa"]["low"]


def hash_of(text: str) -> float:
    return random.Random(text).random()
