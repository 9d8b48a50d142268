"""A report: one evaluation as a self-contained HTML page, with what the prior makes of captions beside the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.contract.storage import Store
from ...pipeline.display import page
from ...pipeline.errors import InputError
from .sections import Sections
from .source import ReportSource


@dataclass(frozen=True)
class Written:
    """What `write_report` wrote."""

    path: str
    bytes: int
    missing: tuple[str, ...]
    """Sentences that stand in place of what is missing."""


def write_report(
    evaluation: str = "data/evaluation",
    prior: str | None = None,
    embeddings: str | None = None,
    images: str = "data/images",
    output: str | None = None,
    *,
    config: str | None = None,
    function_version: str | None = None,
    progress: ProgressCallback = no_progress,
) -> Written:
    """Write the report of an evaluation.

    Args:
        prior: where what was evaluated is now; None if it is where it was.
        embeddings: where what it was evaluated on is now; None if it is where it was.
        images: folder of the images, as webdataset shards.
        output: file to write; `<evaluation>.html` if None.
        config, function_version: of a checkpoint, as for `load_prior`; None if they are what they were.

    Raises:
        InputError: there is no evaluation, the prior or the embeddings are not those that were evaluated, the page
            cannot be written there, or matplotlib is not installed.
    """
    target = _target(output, evaluation)
    source = ReportSource(evaluation, prior, embeddings, config=config, function_version=function_version)
    path = page.page_target("--output", target, (evaluation, source.prior.path, source.embeddings, images))
    sections = Sections(source, images, progress)
    content = page.page(f"Report: {evaluation}", sections.every())
    page.write_page(path, content)
    return Written(path, len(content), tuple(sections.missing))


def _target(output: str | None, evaluation: str) -> str:
    store = Store(evaluation)
    if output is None and not store.is_local:
        raise InputError(f"{store.url} is not on this machine; name a file to write with --output")
    return output if output is not None else f"{store.root}.html"
