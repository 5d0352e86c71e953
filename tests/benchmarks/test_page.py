"""The page of benchmarks has what the records say."""

from __future__ import annotations

import pytest

from fastfgssl.benchmarks.page import fill
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


def test_the_page_is_made_of_the_records():
    text = PAGE.read_text()
    assert fill(text, PAGE.parent / "benchmarks") == text
    assert text.count("<!-- records:") == text.count("<!-- end -->") > 0


def test_a_changed_number_would_be_noticed():
    text = PAGE.read_text()
    wrong = text.replace("calls/s", "calls/hour", 1)
    assert fill(wrong, PAGE.parent / "benchmarks") == text


def test_a_table_without_records_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no records in none"):
        fill("<!-- records: none -->\n<!-- end -->", tmp_path)
