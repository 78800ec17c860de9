"""What the checksums cost is measured on loaders that differ in them alone."""

import json

import pytest

from bench import checks

pytestmark = pytest.mark.timeout(240)


def test_checks_are_compared(tmp_path):
    out = tmp_path / "checks.json"
    checks.main(["--quick", "--corpus", str(tmp_path / "corpus"), "--json", str(out)])
    rows = {(row["task"], row["name"]): row["value"] for row in json.loads(out.read_text())["rows"]}
    assert rows["sum alone, in cache", "ours"] > 0.1
    assert rows["RRC 128", "checked"] > 0
    assert -60 < rows["RRC 128", "checks"] < 100
