"""What is installed is used: `deptry` looks for imports (`make check`), and this for what is used without one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
USED = PROJECT["tool"]["deptry"]["per_rule_ignores"]["DEP002"]
NAMES = PROJECT["tool"]["deptry"]["package_module_name_map"]


@pytest.mark.parametrize("package", [name for name in USED if name != "lvmae"])
def test_what_is_not_imported_is_named_where_it_is_used(package: str) -> None:
    name = NAMES.get(package, package)
    told = [path for path in (ROOT / "src").rglob("*.py") if f'"{name}"' in path.read_text()]
    assert told, f"nothing in src uses {package}: drop it"


def test_every_dependency_is_imported_and_every_import_is_a_dependency() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deptry", "src"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
