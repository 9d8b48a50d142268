"""Inputs of embedding shards: what was read for each, held against what is there now.

An image shard of a download has its hashes in that folder's manifest. Of other files each embedding shard records marks
in `inputs/inputs_NUMBER.json`, see `file_marks`.
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
"""Fingerprint of an input that has never been read, which no record has."""


def input_fingerprint(shard: InputShard, marks: Mapping[str, FileMark], limit: int | None) -> str:
    """Fingerprint of what is embedded of a shard; `UNREAD` where a file of it has no mark.

    Args:
        limit: samples from the first on; None for all.
    """
    names = shard.sources(limit)
    content = shard.fingerprint
    if names:
        if not set(names) <= set(marks):
            return UNREAD
        content = fingerprint([content, content_fingerprint({name: marks[name] for name in names})])
    return content if limit is None else fingerprint([content, limit])


def record_inputs(commit: ShardCommit, name: str, source: Store, shard: InputShard, limit: int | None) -> str:
    """Record the marks of the files that a shard was read from; returns their fingerprint.

    Raises:
        InputError: a file was changed while it was read.
    """
    marks = marks_of_read(source, shard.sources(limit))
    if marks:
        commit.write_log(_marks_name(name), to_json(marks))
    return input_fingerprint(shard, marks, limit)


class RecordedInputs:
    """Marks of the files that the shards of a folder were made from, as those files are now.

    Args:
        source: where the files are.
        folder: of the embeddings.
        done: records of the shards that it holds.

    Raises:
        FolderError: the folder is of a priorkit that kept no marks.
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
            still = set(names)
            self._marks[name] = {each: mark for each, mark in recorded.items() if each in still}
            known.update(self._marks[name])
        now = identify(source, known, known, tell, lenient=True)
        self.touched: dict[str, dict[str, FileMark]] = {}
        """Marks to record again, of files that have another time and the same content, by the name of the shard."""
        for name, recorded in self._marks.items():
            self._marks[name] = {each: now[each] for each in recorded}
            if self._marks[name] != recorded:
                self.touched[name] = self._marks[name]

    def fingerprint(self, shard: InputShard, limit: int | None) -> str:
        """Fingerprint of a shard's first samples as they are now; `UNREAD` where none were read."""
        return input_fingerprint(shard, self._marks.get(embedding_shard_name(int(shard.name)), {}), limit)

    def record_again(self, folder: Store, names: Iterable[str]) -> None:
        """Record the new times of files whose content is the same, so that they are not read again."""
        for name in set(names) & self.touched.keys():
            folder.write_json(_marks_name(name), to_json(self.touched[name]))


def _marks_name(name: str) -> str:
    return f"inputs/inputs_{name}.json"
