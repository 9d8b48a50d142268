"""Detection of changed inputs, by comparing the source files of each embedding shard with their recorded state.

If `download` wrote the input folder, the folder's manifest contains the hashes of the image shards. For any other
input, the embeddings folder contains a file mark (size, modification time and hash) of each source file. The marks for
one embedding shard are in the file `inputs/inputs_NUMBER.json`.
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
"""Value that replaces the fingerprint of a shard if one of its source files has no file mark (recorded size,
modification time and hash). It differs from every recorded fingerprint."""


def input_fingerprint(shard: InputShard, marks: Mapping[str, FileMark], limit: int | None) -> str:
    """Return a hash that identifies the samples of a shard and the contents of the shard's source files.

    Return `UNREAD` if `marks` lacks one of the source files.

    Args:
        shard: input shard.
        marks: file marks (size, modification time and hash) of source files, keyed by path relative to the input
            folder.
        limit: number of samples to include, starting with the first; None for all.
    """
    names = shard.sources(limit)
    content = shard.fingerprint
    if names:
        if not set(names) <= set(marks):
            return UNREAD
        content = fingerprint([content, content_fingerprint({name: marks[name] for name in names})])
    return content if limit is None else fingerprint([content, limit])


def record_inputs(commit: ShardCommit, name: str, source: Store, shard: InputShard, limit: int | None) -> str:
    """Record the file marks of an input shard's source files, and return the fingerprint of the shard's samples.

    A file mark is the size, modification time and hash of a file. The marks are written to a JSON file in the
    embeddings folder.

    Args:
        commit: writer for the files of the embedding shard that is being made from the input shard.
        name: name of the embedding shard.
        source: folder of the source files.
        shard: input shard.
        limit: number of samples that were embedded, starting with the first; None for all.

    Raises:
        InputError: a file changed while it was being read.
    """
    marks = marks_of_read(source, shard.sources(limit))
    if marks:
        commit.write_log(_marks_name(name), to_json(marks))
    return input_fingerprint(shard, marks, limit)


class RecordedInputs:
    """Detector of source files that have changed since their embedding shards were made.

    A file mark is the size, modification time and hash of a file. The constructor determines the current mark of each
    source file, and compares it with the recorded mark. A file is hashed again only if its size or modification time
    differs from the recorded mark. A file that is missing or unreadable counts as changed; it does not cause an error.

    Args:
        source: folder of the source files.
        folder: embeddings folder, which contains the recorded marks.
        shards: input shards.
        done: records of the finished embedding shards, keyed by shard name.
        tell: callback that receives progress messages while files are hashed; None for no messages.

    Raises:
        FolderError: the folder was made by an older version of priorkit, which recorded no marks.
    """

    def __init__(
        self, source: Store, folder: Store, shards: Iterable[InputShard], done: Mapping[str, ShardRecord], tell: Tell
    ) -> None:
        self._marks: dict[str, dict[str, FileMark]] = {}
        known: dict[str, FileMark] = {}
        self.moved: list[str] = []
        """Names of the embedding shards that were made from other files than their input shards have now."""
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
            if recorded and current.isdisjoint(recorded):
                self.moved.append(name)
            self._marks[name] = {each: mark for each, mark in recorded.items() if each in current}
            known.update(self._marks[name])
        now = identify(source, known, known, tell, lenient=True)
        self.touched: dict[str, dict[str, FileMark]] = {}
        """Current file marks (size, modification time and hash) of source files, grouped by embedding shard.

        Only shards with at least one changed mark are included, each with the marks of all its source files. The
        outer key is the name of the embedding shard, and the inner key is the path of the source file.
        """
        for name, recorded in self._marks.items():
            self._marks[name] = {each: now[each] for each in recorded}
            if self._marks[name] != recorded:
                self.touched[name] = self._marks[name]

    def fingerprint(self, shard: InputShard, limit: int | None) -> str:
        """Return the current fingerprint (hash) of a shard's samples and the contents of its source files.

        Return `UNREAD` if no mark was recorded for one of the source files, for example because the shard is not
        embedded yet.

        Args:
            shard: input shard.
            limit: number of samples to include, starting with the first; None for all.
        """
        return input_fingerprint(shard, self._marks.get(embedding_shard_name(int(shard.name)), {}), limit)

    def record_again(self, folder: Store, names: Iterable[str]) -> None:
        """Update the recorded file marks of shards whose source files have new marks but unchanged contents.

        A file mark is the size, modification time and hash of a file. A file that was copied or touched has a new
        modification time. Once its new mark is recorded, later runs do not hash the file again.

        Args:
            folder: embeddings folder, in which the marks are recorded.
            names: names of embedding shards whose source files have unchanged contents. Shards without new marks are
                ignored.
        """
        for name in set(names) & self.touched.keys():
            folder.write_json(_marks_name(name), to_json(self.touched[name]))


def _marks_name(name: str) -> str:
    return f"inputs/inputs_{name}.json"
