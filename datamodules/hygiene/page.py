"""The report of `lightning check-data` as a page of plain text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datamodules.hygiene.near import SHORTEST

SHOWN = 100  # characters of an example


def page(report: Mapping[str, Any], failures: Sequence[str]) -> str:
    """All of it; what is fine takes a line."""
    lines = [line for source in report["sources"] for line in _source(source, report)]
    lines += ["", *_across(report), *_near(report), *_leaks(report), ""]
    if any(source["languages"] is None for source in report["sources"]):
        lines.append("languages were not looked at: pip install py3langid")
    lines.append(f"do not train on this yet: {'; '.join(failures)}" if failures else "fine: nothing forbids training")
    return "\n".join(lines)


def _source(source: Mapping[str, Any], report: Mapping[str, Any]) -> Iterator[str]:
    yield f"{source['source']}: {source['rows']:,} rows"
    counts = {
        "malformed": source["malformed"],
        "repeated": source["repeated"],
        "of the query and positive of one before them, with other negatives": source["repeated_with_other_negatives"],
        "of the text of one before them, with another label": source["repeated_with_another_label"],
        "whose positive is the query": source["positive_is_query"],
        "with a negative that is the positive or the query": source["negative_is_positive_or_query"],
        "with a negative that is a positive of the query in another row": source["negative_is_positive_of_another_row"],
    }
    yield from (f"  {count:,} {what}" for what, count in counts.items() if count)
    yield from (f"    {fault}" for fault in source["faults"])
    if source["languages"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in source["languages"].items())
        yield f"  languages of a sample of rows: {shares}"
    cut = f"  cut at {report['max_length']}" if report["max_length"] else ""
    yield f"  {report['unit'] + ' of a text':<18}{'texts':>12}{'median':>9}{'95 %':>9}{'most':>9}{cut}"
    for role, found in source["lengths"].items():
        share = f"{found['cut']:>{len(cut)}.1%}" if "cut" in found else ""
        numbers = f"{found['texts']:>12,}{found['median']:>9,.0f}{found['95%']:>9,.0f}{found['most']:>9,}"
        yield f"    {role:<16}{numbers}{share}"


def _across(report: Mapping[str, Any]) -> Iterator[str]:
    for found in report["across"]:
        yield f"{found['rows']:,} rows are both in {' and '.join(found['sources'])}"
    if len(report["sources"]) > 1 and not report["across"]:
        yield "no row is in two sources"


def _near(report: Mapping[str, Any]) -> Iterator[str]:
    near = report["near"]
    if near["too_short"]:
        yield f"{near['too_short']:,} rows were too short to look for nearly the same (fewer than {SHORTEST} words)"
    if not near["rows"]:
        yield f"no {'other ' if near['too_short'] else ''}row is nearly another one"
        return
    yield f"{near['rows']:,} rows are nearly one before them ({near['alike']:.0%} of all runs of three words), such as"
    for first_source, first, source, text in near["examples"]:
        yield f"  {_short(first)}  ({first_source})"
        yield f"  {_short(text)}  ({source})"


def _leaks(report: Mapping[str, Any]) -> Iterator[str]:
    for leak in report["leaks"]:
        what = "documents" if leak["documents"] else "texts"
        grave = "" if leak["documents"] else "LEAK: "
        yield f"{grave}{leak['rows']:,} rows of {leak['source']} have {what} of {leak['of']}, such as"
        yield from (f"  {_short(text)}" for text in leak["examples"])
    leaked = {leak["of"] for leak in report["leaks"]}
    if clean := [f"{name} ({count:,})" for name, count in report["looked_for"].items() if name not in leaked]:
        yield f"not among the training texts: those of {', '.join(clean)}"
    if not report["looked_for"]:
        yield "no test texts to look for: mteb.tasks and data.val_sources of a YAML, or --mteb, name them"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
