"""Writes docs/events.md from penstock/schemas/events.py: every event, its fields, types, defaults and docstrings.

Run `python docs/make_events.py` after the schemas changed; a test fails while the page is stale.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from penstock.core.rules import RULES
from penstock.schemas import events

PAGE = Path(__file__).with_name("events.md")
SOURCE = Path(events.__file__)

INTRODUCTION = """\
# Events

Written by `docs/make_events.py` from `penstock/schemas/events.py`; don't edit by hand.

The jobs log, `<namespace>.jobs`, holds records of newline-delimited JSON: one event a line, one or many lines a record.
An event is an object with a `type` and the fields below; fields with a default may be left out. The smallest one that
a person can type:

```json
{"type": "Enqueued", "job": "my-first-job", "job_type": "resize", "payload": {"width": 200}}
```

Its record may have any key and stand in any partition: what stands in the wrong one is forwarded. Everything but
`Enqueued` and the verbs (`CancelRequested`, `RetryRequested`, `Held`, `Unheld`, `Edited`, `Deleted`) is written by
Penstock's own processes; a line that carries no valid lease or epoch is refused, and changes nothing. A line with the
`id` of one that was accepted has no effect. A verb names the `id` of the `Enqueued` that it means; the API shows it as
`enqueued_event`:

```json
{"type": "Held", "id": "hold-1", "job": "my-first-job", "of": "my-first-job", "not_after": 1767225600000}
```

The `changes` of an `Edited` are an object with one or more of `priority`, `queue`, `pool`, `run_at`, `delay_ms`,
`expires_at`, `timeout_ms` and `max_attempts`.

Unknown fields are ignored, so that newer writers do not stop older readers. A line that is larger than 600,000
bytes, not UTF-8, nested deeper than 64, not JSON, of an unknown type, or with a field that is not as described goes
to quarantine (`too_large`, `not_utf8`, `too_deep`, `not_json`, `unknown_type`, `invalid`), and what is behind it goes
on. A record may have 900,000 bytes and 32,768 lines.

## Types of fields

| type | is |
| --- | --- |
| `JobId` | 1 to 128 characters of `A-Za-z0-9._:-`, and optionally `~` and a home: jobs of one home share a partition |
| `Name` | 1 to 128 characters of `A-Za-z0-9_.:/-`, the first a letter, digit or `_` |
| `Tenant` | 1 to 64 characters of `A-Za-z0-9_.-`, the first a letter, digit or `_` |
| `EventId`, `Short` | text of at most 256 characters |
| `TimeMs` | Unix time in milliseconds, up to the year 9999 |
| `DurationMs` | milliseconds, up to ten years |
| `Packed` | a position inside the partition: `offset * 32768 + line`; -1 is none |
| `Count` | 0 to 1,000,000 |
| `Priority` | `critical`, `high`, `normal` or `low` |
| `Body`, `Raw` | any JSON |
"""


class Field(NamedTuple):
    """One field as the page shows it. ``default`` is source text, empty where the field must be given."""

    name: str
    kind: str
    default: str
    text: str


class Shape(NamedTuple):
    """A class of the source."""

    name: str
    bases: tuple[str, ...]
    text: str
    fields: tuple[Field, ...]


def shapes() -> dict[str, Shape]:
    """Classes of the source by name, in its order."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    return {node.name: _shape(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _shape(node: ast.ClassDef) -> Shape:
    fields: list[Field] = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
            continue
        assert isinstance(statement.target, ast.Name)
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = str(following.value.value)
        default = "" if statement.value is None else ast.unparse(statement.value)
        fields.append(Field(statement.target.id, _kind(statement.annotation), default, _prose(text)))
    bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
    first = (ast.get_docstring(node) or "").split("\n\n")[0]
    return Shape(node.name, bases, _prose(first), tuple(fields))


def _kind(annotation: ast.expr) -> str:
    """An annotation as written, with limits in words."""
    if isinstance(annotation, ast.BinOp):
        parts = (_kind(annotation.left), _kind(annotation.right))
        return " or ".join("null" if part == "None" else part for part in parts)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        kind, limits = annotation.slice.elts
        meta = eval(ast.unparse(limits), dict(vars(events)))
        if meta.max_length is not None:
            return f"{_kind(kind)}, at most {meta.max_length:,} long"
        most = meta.le if meta.le is not None else meta.lt - 1
        return f"{_kind(kind)}, {meta.ge:,} to {most:,}"
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        assert isinstance(annotation.slice, ast.Tuple)
        return ", ".join(repr(ast.literal_eval(element)) for element in annotation.slice.elts)
    if isinstance(annotation, ast.Name) and annotation.id == "BodyOrNone":
        return "Body"
    return ast.unparse(annotation)


def _prose(text: str) -> str:
    """Docstring markup as Markdown."""
    return re.sub(r"``([^`]*)``", r"`\1`", " ".join(text.split()))


def _headings() -> dict[str, str]:
    """The section that begins before a class, by the class's name."""
    found: dict[str, str] = {}
    heading = ""
    for line in SOURCE.read_text(encoding="utf-8").splitlines():
        if re.match(r"# [A-Z]", line) and not line.endswith("."):
            heading = line[2:]
        elif (match := re.match(r"class (\w+)", line)) and heading:
            found[match[1]] = heading
            heading = ""
    return found


def own_fields(shape: Shape, known: dict[str, Shape]) -> Iterator[Field]:
    """Fields beyond the envelope, inherited ones first."""
    for base in shape.bases:
        if base in known and known[base].name not in {"Event", "Struct"}:
            yield from own_fields(known[base], known)
    if shape.name not in {"JobEvent", "Event"}:
        yield from shape.fields


def _table(fields: list[Field]) -> list[str]:
    lines = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in fields:
        default = f"`{_json(field.default)}`" if field.default else "must be given"
        lines.append(
            f"| `{field.name}` | {field.kind.replace('|', chr(92) + '|')} | {default} | {field.text} |"
        )
    return lines


def _json(source: str) -> str:
    """A default as it would stand in JSON."""
    names = {
        "None": "null",
        "NULL": "null",
        "ABSENT": "",
        "True": "true",
        "()": "[]",
        "Backoff()": "a `Backoff`",
    }
    return names.get(source, source.replace("'", '"'))


def _envelope() -> str:
    """What the module says of the fields that all events have."""
    paragraphs = (events.__doc__ or "").split("\n\n")
    return _prose(next(text for text in paragraphs if text.startswith("The envelope")))


def page() -> str:
    """The whole page."""
    known = shapes()
    headings = _headings()
    kinds = [kind.__name__ for kind in get_args(events.AnyEvent)]
    in_force = RULES[max(RULES)].in_force
    lines = [INTRODUCTION, "## The envelope", "", known["Event"].text.replace("See the module.", "").strip()]
    lines += [_envelope(), "", *_table([*known["Event"].fields]), ""]
    lines += ["`job` must be given wherever the event is one of a job.", ""]
    for name in ("Backoff", "JobError", "Unique"):
        lines += [f"## `{name}`", "", known[name].text, "", *_table([*known[name].fields]), ""]
    # Sections in the order of the source, for that is the order of a job's life.
    for name, shape in known.items():
        if name in headings and any(kind in kinds for kind in _from(name, known)):
            lines += [f"## {headings[name]}", ""]
        if name in kinds:
            lines += [*_event(shape, known, name in in_force)]
    return "\n".join(lines)


def _from(name: str, known: dict[str, Shape]) -> list[str]:
    names = list(known)
    return names[names.index(name) :]


def _event(shape: Shape, known: dict[str, Shape], in_force: bool) -> list[str]:
    notes = []
    if getattr(events, shape.name).leader_only:
        notes.append("Only the partition's leader may write it.")
    if not in_force:
        notes.append("Not in force yet: refused.")
    fields = list(own_fields(shape, known))
    lines = [f"### `{shape.name}`", "", " ".join([shape.text, *notes]), ""]
    return [*lines, *_table(fields), ""] if fields else lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
