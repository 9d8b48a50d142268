"""Detection of changed inputs: compares the source files of each embedding shard with their recorded state.

The manifest of a folder that `download` wrote contains the hashes of its image shards. For any other input, file marks
(size, modification time and hash) are recorded in the embeddings folder. Each embedding shard has a file
`inputs/inputs_NUMBER.json` with the marks of its source files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..contract.commit import ShardCommit
from ..contract.file_marks import FileMark, Tell, content_fingerprint, identify, marks_of_read, read_marks, to_json
from ..contract.manifest import ShardRecord, embedding_shard_name, fingerprint
from ..contract.storage import Store
from ..errors import FolderError
from .inputs import InputShard

UNREAD = "unread"
"""Fingerprint of an input that was never read; no recorded fingerprint equals it."""


def input_fingerprint(shard: InputShard, marks: Mapping[str, FileMark], limit: int | None) -> str:
    """Return the fingerprint of a shard's samples, or `UNREAD` if one of the shard's source files has no mark.

    Args:
        marks: marks of the source files, keyed by path relative to the input folder.
        limit: number of samples, starting with the first; None for all.
    """
    names = shard.sources(limit)
    content = shard.fingerprint
    if names:
        if not set(names) <= set(marks):
            return UNREAD
        content = fingerprint([content, content_fingerprint({name: marks[name] for name in names})])
    return content if limit is None else fingerprint([content, limit])


def record_inputs(commit: ShardCommit, name: str, source: Store, shard: InputShard, limit: int | None) -> str:
    """Record file marks for the source files of an input shard, and return the fingerprint of the shard's samples.

    Raises:
        InputError: a file changed while it was being read.
    """
    marks = marks_of_read(source, shard.sources(limit))
    if marks:
        commit.write_log(_marks_name(name), to_json(marks))
    return input_fingerprint(shard, marks, limit)


class RecordedInputs:
    """Current file marks of the source files from which the shards of an embeddings folder were made.

    A file is hashed again only if its size or modification time differs from the recorded mark.

    Args:
        source: folder of the source files.
        folder: embeddings folder.
        shards: input shards.
        done: records of the finished embedding shards, keyed by shard name.
        tell: callback for notes about hashing progress.

    Raises:
        FolderError: the folder was made by an older version of priorkit, which recorded no marks.
    """

    def __init__(
        self, source: Store, folder: Store, shards: Iterable[InputShard], done: Mapping[str, ShardRecord], tell: Tell
    ) -> None:
        self._marks: dict[str, dict[str, FileMark]] = {}
        known: dict[str, FileMark] = {}
        for shard in shards:
            name = embedding_shard_name(int(shard.name))
            if name not in done or not (names := shard.sources(None)):
                continue
            if _marks_name(name) not in done[name].logs:
                raise FolderError(
                    f"{folder.url} was made by an older priorkit, which did not record the content of {shard.title}; "
                    "use --overwrite to discard what is there, or name another folder"
                )
            recorded = read_marks(folder, _marks_name(name)) or dict.fromkeys(names, FileMark(0, None, ""))
            current = set(names)
            self._marks[name] = {each: mark for each, mark in recorded.items() if each in current}
            known.update(self._marks[name])
        now = identify(source, known, known, tell, lenient=True)
        self.touched: dict[str, dict[str, FileMark]] = {}
        """Current file marks by source file, for each embedding shard whose recorded marks are out of date."""
        for name, recorded in self._marks.items():
            self._marks[name] = {each: now[each] for each in recorded}
            if self._marks[name] != recorded:
                self.touched[name] = self._marks[name]

    def fingerprint(self, shard: InputShard, limit: int | None) -> str:
        """Return the current fingerprint of a shard's samples, or `UNREAD` if one of its source files has no mark.

        Args:
            limit: number of samples, starting with the first; None for all.
        """
        return input_fingerprint(shard, self._marks.get(embedding_shard_name(int(shard.name)), {}), limit)

    def record_again(self, folder: Store, names: Iterable[str]) -> None:
        """Record the current marks of the given shards, so that the next run does not hash their source files again.

        Args:
            folder: embeddings folder.
            names: names of embedding shards whose input content is unchanged.
        """
        for name in set(names) & self.touched.keys():
            folder.write_json(_marks_name(name), to_json(self.touched[name]))


def _marks_name(name: str) -> str:
    return f"inputs/inputs_{name}.json"
