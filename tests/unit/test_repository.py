"""The files of the repository that no other test reads: hooks, workflows, templates and the changelog."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def uses_and_commands(workflow: Any) -> list[str]:
    """Return what the jobs of a workflow run, in order."""
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    return [step.get("uses") or step["run"] for step in steps]


@pytest.mark.parametrize("path", tracked("*.yml", "*.yaml", "*.cff"), ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_files_are_mappings(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_each_hook_runs_a_tool_of_the_environment_on_files_that_exist() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local", "hooks download nothing"
    entries = {hook["id"]: hook["entry"].split() for hook in repo["hooks"]}
    assert set(entries) == {"ruff-check", "ruff-format", "mypy", "structure"}
    for words in entries.values():
        assert words[0] in (".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/python")
        assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))


def test_the_workflow_runs_every_check_and_publishing_waits_for_it() -> None:
    assert uses_and_commands(read(".github/workflows/ci.yml"))[-1] == ".ci/run"
    publish = read(".github/workflows/publish.yml")
    assert publish[True] == {"push": {"tags": ["v*"]}}, "YAML 1.1 reads the key `on` as true"
    assert publish["jobs"]["publish"]["needs"] == "check"
    assert publish["jobs"]["publish"]["permissions"]["id-token"] == "write"
    assert not re.search(r"https?:|secrets\.", (ROOT / ".github/workflows/publish.yml").read_text(encoding="utf-8"))


def test_the_script_of_all_checks_is_executable_and_names_targets_that_exist() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    calls = re.findall(r"\bmake (?:--\S+ )*((?:[a-z-]+ ?)+)", script.read_text(encoding="utf-8"))
    called = {target for call in calls for target in call.split()}
    assert called == {"test", "check", "test-marked", "test-peers", "test-pythons", "peers"} <= targets


def test_the_changelog_has_the_form_of_keepachangelog() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    headings = [line for line in lines if line.startswith("#")]
    assert headings[:2] == ["# Changelog", "## [Unreleased]"]
    versions = [line for line in headings if line.startswith("## ")]
    assert all(
        re.fullmatch(r"## \[(Unreleased|\d+\.\d+\.\d+)\]( - (\d{4}-\d\d-\d\d|unreleased))?", v) for v in versions
    )
    kinds = [line.removeprefix("### ") for line in headings if line.startswith("### ")]
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    body = lines[lines.index("## [Unreleased]") :]
    assert [line for line in body if line and not line.startswith(("#", "- ", "["))] == [], "one line each"


def test_the_sdist_holds_every_folder_of_the_repository() -> None:
    rules = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    packaged = {"pipeline", "prior", "recipes"}
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    assert folders - packaged <= set(re.findall(r"^graft (\S+)$", rules, re.MULTILINE))
    files = {path.name for path in tracked() if path.parent == ROOT and path.suffix != ".py"}
    by_default = {"README.md", "LICENSE", "pyproject.toml", "MANIFEST.in", "py.typed", ".gitignore"}
    assert files - by_default <= set(rules.split())
