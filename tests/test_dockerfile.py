"""The Dockerfile's steps, where no Docker is: what they copy exists, what they install is locked and fits, nothing runs as root."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
STEPS = [line.partition(" ")[::2] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED_EXTRAS = ("caption", "demo", "hdf5", "s3", "search", "serve", "shots", "tensorboard")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return {
        key.lower().replace("_", "-"): version
        for key, version in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    }


def required() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for name in LOCKED_EXTRAS for line in extras[name])]
    lines += extras["conse"]  # which demo needs
    return [Requirement(line) for line in lines if not line.startswith("lvmae[")]


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for sources in (rest.split()[:-1] for step, rest in STEPS if step == "COPY" and "--from" not in rest):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source in allowed


def test_it_ends_as_a_user_that_is_not_root() -> None:
    last = STEPS[max(i for i, (step, _) in enumerate(STEPS) if step == "FROM") :]
    users = [rest for step, rest in last if step == "USER"]
    assert users == ["1000"]
    assert [step for step, _ in last].index("USER") > max(i for i, (step, _) in enumerate(last) if step == "RUN")
    assert not re.search(r"(?i)token|password|secret|key=", DOCKERFILE)


@pytest.mark.parametrize("requirement", required(), ids=str)
def test_every_requirement_is_locked_in_a_version_that_fits(requirement: Requirement) -> None:
    versions, name = locked("base") | locked("cuda"), requirement.name.lower().replace("_", "-")
    assert name in versions, "run `make lock`"
    assert requirement.specifier.contains(Version(versions[name]))


def test_every_locked_package_has_hashes() -> None:
    for name in ("base", "cuda"):
        entries = re.findall(
            r"^[\w.-]+==.*(?:\n    .*)*", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE
        )
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
    torch = re.search(r"torch==([\d.]+)", DOCKERFILE)
    assert torch is not None
    assert torch[1] == locked("cuda")["torch"]


def test_what_is_copied_is_all_that_the_command_needs(tmp_path: Path) -> None:
    """The package alone, without the rest of the checkout, as the last step but one installs it."""
    shutil.copytree(ROOT / "src" / "lvmae", tmp_path / "lvmae", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": "/nowhere"}
    command = [sys.executable, "-m", "lvmae", "--version"]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, f"lvmae {PROJECT['version']}\n")
