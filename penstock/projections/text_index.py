"""Full text of jobs: an index of trigrams on the disk that says which jobs may have what is searched for.

::

    a job's searched text ──case folded──▶ every three characters in a row ─┐
    its id ──▶ its first 3, 4, 6, 8 ... characters ───────────────────────────┴▶ tantivy: jobs by term

    "what contains `ayment fai`" ──▶ jobs with all of aym yme men ent "nt " "t f" " fa" fai, in creation order

Whatever contains a text has all its trigrams, so no job is missed; some have them elsewhere, so each is looked at
before it is answered (:mod:`penstock.projections.search`). The index decides nothing: without it searches give the same
answers, only later. It can be thrown away at any time, and is made anew from the read model.

It says of each partition whose fold it has, and everything below which offset. Not thread-safe, but for
:meth:`TextIndex.commit`, beside which only reads may go on.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import tantivy
from tantivy import FieldType, Occur, Order, Query

from penstock.projections.candidates import ListKey, Window
from penstock.projections.port import JobFilter
from penstock.state.partition_store import StoreIdentity

FORMAT = 1
"""Version of the index's fields; it is part of the folder's name."""

GRAM = 3
PREFIXES = (3, 4, 6, 8, 12, 16, 24, 32)
"""How many of an id's first characters are a term."""

WRITER_BYTES = 16 * 1024 * 1024
"""What is indexed and not yet written, in memory."""

COMMON = 4
"""A term that one job in so many has does not narrow a search down."""

FIRST_HITS = 64
MOST_HITS = 1_024

_GRAMS, _PREFIX, _SCOPE, _PARTITION, _KEY, _ID, _CREATED = (
    "grams",
    "prefix",
    "scope",
    "partition",
    "key",
    "id",
    "created",
)


class TextIndexFailed(Exception):
    """The index is damaged, cannot be written, or is another process's."""


@contextlib.contextmanager
def _telling() -> Generator[None]:
    """Whatever tantivy raises, as one error. A panic of its code is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError | ValueError) or type(error).__name__ == "PanicException":
            raise TextIndexFailed(str(error)) from error
        raise


class Term(NamedTuple):
    """Something that all jobs which match have."""

    field: str
    text: str


class Entry(NamedTuple):
    """A job as it is indexed. ``text`` is case folded."""

    tenant: str
    key: str
    id: str
    created_at_ms: int
    text: str


class Covered(msgspec.Struct, frozen=True):
    """Of a partition: whose fold is indexed, below which offset."""

    identity: StoreIdentity
    offset: int


_encode_covered = msgspec.json.Encoder().encode
_decode_covered = msgspec.json.Decoder(Covered).decode


def terms_of(wanted: JobFilter) -> list[Term]:
    """What every job that matches is indexed under; empty where the index knows nothing of what is asked."""
    asked = [
        *wanted.text.casefold().split(),
        wanted.payload_contains.casefold(),
        wanted.error_contains.casefold(),
    ]
    terms = [Term(_GRAMS, gram) for text in asked for gram in _grams(text)]
    terms += [Term(_PREFIX, prefix) for prefix in _prefixes(wanted.id_prefix)[-1:]]
    return list(dict.fromkeys(terms))


def _prefixes(job_id: str) -> list[str]:
    return [job_id[:length] for length in PREFIXES if length <= len(job_id)]


def _grams(text: str) -> Iterable[str]:
    grams = (text[start : start + GRAM] for start in range(len(text) - GRAM + 1))
    return (gram for gram in grams if _well_formed(gram) == gram)


def _well_formed(text: str) -> str:
    """Without lone surrogates, which no UTF-8 has."""
    return text.encode("utf-8", "replace").decode()


class TextIndex:
    """One index for all partitions of a process, in ``folder``. Any call may raise TextIndexFailed."""

    @_telling()
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._schema = _schema()
        self._index = tantivy.Index(self._schema, str(folder))
        self._index.config_reader(reload_policy="manual")
        analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.ngram(GRAM, GRAM, prefix_only=False)).build()
        self._index.register_tokenizer("trigrams", analyzer)
        self._writer = self._index.writer(heap_size=WRITER_BYTES, num_threads=1)
        self._searcher = self._index.searcher()

    def close(self) -> None:
        """Let go of the folder, without what is not committed. Nothing else may be called after it."""
        del self._writer

    # Writing

    @_telling()
    def add(self, partition: int, entry: Entry, *, fresh: bool) -> None:
        """Index a job; seen after the next commit. ``fresh``: nothing can be there of it."""
        if not fresh:
            self.remove(partition, entry.key)
        document = tantivy.Document(
            key=f"{partition} {entry.key}",
            partition=str(partition),
            scope=f"{partition} {entry.tenant}",
            id=entry.id,
            created=entry.created_at_ms,
            grams=_well_formed(entry.text),
            prefix=_prefixes(entry.id),
        )
        self._writer.add_document(document)

    @_telling()
    def remove(self, partition: int, key: str) -> None:
        """Take a job out, from the next commit on."""
        self._writer.delete_documents_by_term(_KEY, f"{partition} {key}")

    @_telling()
    def remove_partition(self, partition: int) -> None:
        """Take all of a partition out, and what it covers, from the next commit on."""
        self._writer.delete_documents_by_term(_PARTITION, str(partition))
        self._writer.delete_documents_by_term(_KEY, _covered_key(partition))

    @_telling()
    def cover(self, covered: Covered) -> None:
        """Everything below an offset is in what was added; seen after the next commit."""
        key = _covered_key(covered.identity.partition)
        self._writer.delete_documents_by_term(_KEY, key)
        self._writer.add_document(tantivy.Document(key=key, id=_encode_covered(covered).decode()))

    @_telling()
    def commit(self) -> None:
        """Bring what was added to the disk, and show it. Takes tens of milliseconds and more: for another thread."""
        self._writer.commit()
        self._index.reload()
        self._searcher = self._index.searcher()

    # Reading

    @_telling()
    def covered(self, identity: StoreIdentity) -> int:
        """Below which offset a partition is indexed whole; -1 where it is not, or is of another fold."""
        query = Query.term_query(self._schema, _KEY, _covered_key(identity.partition), "basic")
        found = -1
        for _, address in self._searcher.search(query, 10, count=False).hits:
            covered = _decode_covered(_id_at(self._searcher, address).encode())
            if covered.identity == identity:
                found = max(found, covered.offset)
        return found

    @_telling()
    def narrows(self, terms: Iterable[Term]) -> bool:
        """Whether few enough jobs have all terms that these are better looked at than all jobs in order."""
        rarest = min((self._searcher.doc_freq(term.field, term.text) for term in terms), default=None)
        return rarest is not None and rarest * COMMON <= self._searcher.num_docs

    def finder(self, partition: int, tenant: str, terms: Iterable[Term], *, descending: bool) -> Finder:
        """Finds jobs with all terms, as of now: whatever is committed later is not seen."""
        return Finder(self._schema, self._searcher, partition, tenant, terms, descending=descending)


class Finder:
    """Finds jobs of one partition and tenant that have all terms, in creation order. May raise TextIndexFailed."""

    def __init__(
        self,
        schema: tantivy.Schema,
        searcher: tantivy.Searcher,
        partition: int,
        tenant: str,
        terms: Iterable[Term],
        *,
        descending: bool,
    ) -> None:
        self._schema = schema
        self._searcher = searcher
        self._descending = descending
        self._parts = [
            (Occur.Must, Query.term_query(schema, field, text, "basic"))
            for field, text in (*terms, Term(_SCOPE, f"{partition} {tenant}"))
        ]

    def places(self, window: Window) -> Iterator[ListKey]:
        """All that are in the window, a batch at a time."""
        low, high = window.low[0], None if window.high is None else window.high[0]
        most = FIRST_HITS
        while True:
            with _telling():
                hits = self._hits(low, high, most)
            exhausted = len(hits) < most
            edge = hits[-1][0] if hits else 0
            if not exhausted:
                # Of those created in the same millisecond as the last one there may be more.
                hits = [hit for hit in hits if hit[0] != edge]
            with _telling():
                found = {(created, _id_at(self._searcher, address)) for created, address in hits}
            yield from sorted(filter(window.has, found), reverse=self._descending)
            if exhausted:
                return
            most = min(2 * most, MOST_HITS) if hits else 2 * most
            low, high = (low, edge) if self._descending else (edge, high)

    def _hits(self, low: int, high: int | None, most: int) -> list[tuple[int, tantivy.DocAddress]]:
        """The first ``low <= created <= high``."""
        parts = self._parts
        if low > 0 or high is not None:
            between = Query.range_query(self._schema, _CREATED, FieldType.Integer, low, high)
            parts = [*parts, (Occur.Must, between)]
        order = Order.Desc if self._descending else Order.Asc
        query = Query.boolean_query(parts)
        return self._searcher.search(query, most, count=False, order_by_field=_CREATED, order=order).hits


def _id_at(searcher: tantivy.Searcher, address: tantivy.DocAddress) -> str:
    found = searcher.doc(address).get_first(_ID)
    assert isinstance(found, str), "every document has an id"
    return found


def _covered_key(partition: int) -> str:
    # No job's key in the index begins so.
    return f"covered {partition}"


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for field in (_PREFIX, _SCOPE, _PARTITION, _KEY):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    builder.add_text_field(_GRAMS, tokenizer_name="trigrams", index_option="basic")
    builder.add_text_field(_ID, stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field(_CREATED, fast=True)
    return builder.build()


def open_index(folder: Path) -> TextIndex:
    """Open the index below a folder; one of another format is removed. Raises TextIndexFailed and OSError."""
    place = _place(folder)
    for old in folder.glob("text-index-*"):
        if old != place:
            shutil.rmtree(old)
    return TextIndex(place)


def remove_index(folder: Path) -> None:
    """Remove the index below a folder, if nobody has it open. Raises OSError."""
    place = _place(folder)
    try:
        TextIndex(place).close()
    except TextIndexFailed as error:
        if "LockBusy" in str(error):
            return
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _place(folder: Path) -> Path:
    return folder / f"text-index-{FORMAT}"
