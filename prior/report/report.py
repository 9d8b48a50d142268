"""Report of an evaluation: a self-contained HTML page with metrics, plots and an image gallery."""

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
    """Result of `write_report`: the path and size of the page, and the parts that are missing."""

    path: str
    """Path of the written page."""
    bytes: int
    """Size of the page in bytes."""
    missing: tuple[str, ...]
    """Sentences that the page shows in place of parts that are missing, such as images."""


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
        evaluation: evaluation folder.
        prior: location of the evaluated prior or predictions; None for their location during the evaluation.
        embeddings: location of the embeddings; None for their location during the evaluation.
        images: folder with the images, as webdataset shards.
        output: file to write; None for `<evaluation>.html`.
        config: argument `config` of `load_prior`, for a prior that is a `.pth` checkpoint. If both this argument and
            `prior` are None, the value used in the evaluation applies.
        function_version: dalle2-pytorch release whose network implementation a `.pth` checkpoint needs; see
            `load_prior`. If both this argument and `prior` are None, the release used in the evaluation applies.
        progress: callback, called while embeddings are predicted for the plots.

    Raises:
        InputError: there is no finished evaluation, the prior or the embeddings differ from those that were evaluated,
            the page cannot be written, or matplotlib is not installed.
    """
    target = _target(output, evaluation)
    source = ReportSource(evaluation, prior, embeddings, config=config, function_version=function_version)
    path = page.page_target("--output", target, (evaluation, source.prior.path, source.embeddings, images))
    sections = Sections(source, images, progress)
    content = page.page(f"Report: {evaluation}", sections.all_sections())
    page.write_page(path, content)
    return Written(path, len(content), tuple(sections.missing))


def _target(output: str | None, evaluation: str) -> str:
    """Return the path of the report: `output` or, if it is None, `<evaluation>.html`.

    Raises:
        InputError: `output` is None and the evaluation folder is remote.
    """
    store = Store(evaluation)
    if output is None and not store.is_local:
        raise InputError(f"{store.url} is not on this machine; name a file to write with --output")
    return output if output is not None else f"{store.root}.html"
