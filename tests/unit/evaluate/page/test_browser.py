"""The browser of items: all that was answered is in the page, and only the page's own script may run."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from posttrain.evaluate.measure.item_scores import ScoredItem
from posttrain.evaluate.page.browser import browser_of
from posttrain.evaluate.page.compare_page import render_comparisons
from posttrain.evaluate.page.narrow import label_cells
from posttrain.evaluate.page.two_sides import Comparison

HOSTILE = "</script><script>alert('x')</script> & <!--"


def item(number: int, correct: float = 1.0, response: str = "yes", task: str = "sums") -> ScoredItem:
    return ScoredItem(f"i{number}", task, "en", f"prompt {number}", response, "yes", None, "exact", correct, None, True)


def test_every_item_is_there_once_with_what_each_policy_answered() -> None:
    before = [item(2), item(1, 0.0, "no")]
    after = [item(1), item(3, task="names"), item(2, 0.5)]
    browser = browser_of([("all", ["one", "two"], [before, after])], 10)
    assert browser is not None and (browser.count, browser.left_out) == (3, 0)
    (found,) = json.loads(browser.data)
    assert [row[0] for row in found["items"]] == ["i3", "i1", "i2"]  # by task, language and id
    assert found["items"][0][6] == [None, [1, None, "yes", 1]]
    assert [answer[0] for answer in found["items"][1][6]] == [0, 1]


def test_ten_thousand_items_are_held_and_what_goes_beyond_is_counted() -> None:
    many = [item(number) for number in range(10_100)]
    browser = browser_of([("all", ["one"], [many])], 10_000)
    assert browser is not None and (browser.count, browser.left_out) == (10_000, 100)
    assert browser_of([("all", ["one"], [many])], 0) is None
    assert browser_of([("all", [], [])], 10) is None


def test_text_of_items_cannot_leave_its_element_and_only_the_pages_script_may_run() -> None:
    pair = (item(1, 0.0, HOSTILE), item(1, 1.0, HOSTILE))
    page = render_comparisons("a and b", [Comparison("end", "a", "b", 1, 0, 0, 0, [], [], [], [], None, [pair])], 0.95)
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="items-data"', ""]
    assert json.loads(scripts[0][1])[0]["items"][0][6][0][2] == HOSTILE
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.endswith(f"script-src 'sha256-{digest}'") and "default-src 'none'" in policy
    wanted = set(re.findall(r'part\("(\w+)"\)', scripts[1][1]))
    assert {f"items-{name}" for name in wanted} <= set(re.findall(r'id="([\w-]+)"', page))


def test_cells_name_their_columns_under_cells_that_span_rows() -> None:
    table = (
        "<table><thead><tr><th>step</th><th>task</th><th class='n'>n &amp; m</th></tr></thead><tbody>"
        '<tr><th rowspan="2">one</th><th>sums</th><td>1</td></tr><tr><th>names</th><td>2</td></tr>'
        "<tr><th>two</th><th>sums</th><td>3</td></tr></tbody></table>"
    )
    labels = re.findall(r'data-label="([^"]*)"[^<]*<', label_cells(table))
    assert labels == ["step", "task", "n &amp; m", "task", "n &amp; m", "step", "task", "n &amp; m"]
    assert label_cells("<table><tr><td>1</td></tr></table>") == "<table><tr><td>1</td></tr></table>"
