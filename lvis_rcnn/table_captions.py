"""What stands around the results table: how to read it, and how each number was obtained."""

import re
from collections.abc import Iterable
from typing import Any

from lvis_rcnn.config import Study
from lvis_rcnn.printed_table import MARKS, places
from lvis_rcnn.runs import MEASURES
from lvis_rcnn.table_rows import COMPARED, RESCORED, TRAINED, Row, difference, reasons


def titled(study: Study) -> str:
    """The study's title, with its name in it."""
    named = re.search(rf"(?<![\w.]){re.escape(study.study)}(?![\w.])", study.title)
    return study.title if named else f"{study.title} ({study.study})"


def devices_line(rows: list[Row]) -> str:
    """What the marks mean; empty where all was measured on one device."""
    first, *others = places(rows) or [""]
    if not others:
        return ""
    marked = [f"{MARKS[min(at, len(MARKS) - 1)]} {place}" for at, place in enumerate(others, start=1)]
    return f"Mem and Inf time compare only on one device: no mark {first}; {'; '.join(marked)}."


def reading_line(rows: list[Row]) -> str:
    """What the columns beyond the page are, and which seeds are missing from a mean."""
    parts = ["APr, APc, APf: mask AP of rare, common and frequent categories. All AP in percent."]
    seeds = max(len(row.runs) for row in rows)
    if seeds > 1:
        parts.append(f"Mean ± sample standard deviation over {seeds} seeds.")
    parts += interval_sentence(rows)
    if any(difference(row, name) is not None for row in rows for name in COMPARED):
        said = "the published number, and of AP what was measured here minus that"
        parts.append(f"In round brackets: {said}; ! marks what is {noise_of(rows, seeds)}.")
    for row in rows:
        if any(not run.missing for run in row.runs):
            late = {run.seed: next(iter(run.missing.values())) for run in row.runs if run.missing}
            parts += [f"{row.title}, seed {seed}: {reasons({seed: why})}." for seed, why in late.items()]
    return " ".join(parts)


def interval_sentence(rows: list[Row]) -> list[str]:
    """What square brackets are, where there are any."""
    shown = [row for row in rows if any(row.interval(name) for name in MEASURES)]
    if not shown:
        return []
    records = [run.records["evaluate"] for row in shown for run in row.runs if "evaluate" in run.records]
    numbers = sorted({found["intervals"]["resamples"] for found in records if found.get("intervals")})
    of_means = "; that of a mean over seeds counts their spread, too" if any(row.has_mean for row in shown) else ""
    resamples = ", ".join(f"{number:,}" for number in numbers)
    sentence = f"95 % interval over the validation images, from a bootstrap of {resamples} resamples{of_means}"
    return [f"In square brackets: {sentence}."]


def noise_of(rows: list[Row], seeds: int) -> str:
    """Beyond which noise a difference to a published number is marked."""
    rescored = "more than the rounding of the published number, the weights being the same"
    trained = (
        "more than two standard deviations over the seeds"
        if seeds > 1
        else "outside the interval over the validation images; another seed would move it, too"
    )
    of = {RESCORED: rescored, TRAINED: trained}
    return ", or, trained here, ".join(text for source, text in of.items() if any(row.source == source for row in rows))


def files_line(rows: list[Row]) -> str:
    """The published files that were read, with the digest of their bytes; empty where there are none."""
    files = [f"{file['file']} (sha256 {file['sha256']})" for file in published_files(rows)]
    return f"Published files scored here: {'; '.join(files)}." if files else ""


def published_files(rows: list[Row]) -> list[dict[str, str]]:
    """Name and digest of each published file that was read."""
    records = [run.records["import"] for row in rows for run in row.runs if "import" in run.records]
    return [{key: record[key] for key in ("file", "sha256")} for record in records]


def provenance(study: Study, rows: list[Row]) -> dict[str, Any]:
    """What all numbers of the table were made with; lists hold every value that occurs."""
    # A published model was trained elsewhere: what its numbers were made with here is what detected with it.
    found_by_run = [run.records for row in rows for run in (*row.runs, *filter(None, [row.measured]))]
    records = [{**found, "made": found.get("train", found.get("infer", {}))} for found in found_by_run]

    def all_of(step: str, *keys: str) -> list[Any]:
        found: list[Any] = []
        for record in records:
            value: Any = record.get(step, {})
            for key in keys:
                value = (value or {}).get(key, {})
            if value != {} and value not in found:
                found.append(value)
        return found

    return {
        "study": study.study,
        "seeds": list(study.seeds),
        "code_version": all_of("made", "code_version"),
        "train_annotations_sha256": all_of("train", "annotations_sha256"),
        "val_annotations_sha256": all_of("evaluate", "annotations_sha256"),
        "versions": {name: all_of("made", "versions", name) for name in ("python", "torch", "torchvision")},
        "device": all_of("train", "device"),
        "threads": all_of("made", "threads"),
        "precision": all_of("made", "precision"),
        "images_seen": all_of("train", "images_seen"),
        "finished": max((str(at)[:10] for at in all_of("train", "finished_at")), default=None),
        "protocol": all_of("evaluate", "protocol"),
        "scored_on": scored_on(rows),
        "measured_on": all_of("measure", "device"),
        "memory": list(filter(None, all_of("measure", "training"))),
        "fps": all_of("measure", "inference"),
        "published_files": published_files(rows),
    }


def scored_on(rows: list[Row]) -> list[str]:
    """What runs were scored on, and how many images that is."""
    scored = [(row, run.records["evaluate"]) for row in rows for run in row.runs if "evaluate" in run.records]
    named = (f"{found['images']:,} validation images of {row.scored_on}" for row, found in scored if "images" in found)
    return list(dict.fromkeys(named))


def provenance_line(study: Study, rows: list[Row]) -> str:
    """:func:`provenance` in one line; what no run has recorded yet is left out."""
    facts = provenance(study, rows)
    seeds = f"seed{'s' if len(facts['seeds']) > 1 else ''} {', '.join(map(str, facts['seeds']))}"
    digests = {"train": facts["train_annotations_sha256"], "val": facts["val_annotations_sha256"]}
    parts = [
        f"Study {facts['study']}" + (f", {seeds}" if facts["seeds"] else ""),
        listed("code", facts["code_version"]),
        listed("data", [f"{sha256[:8]} ({split})" for split, found in digests.items() for sha256 in found]),
        *(listed(name.replace("python", "Python"), found) for name, found in facts["versions"].items()),
        listed("trained on", facts["device"]),
        listed("threads", facts["threads"]),
        listed("", facts["precision"]),
        listed("images seen by a run:", facts["images_seen"]),
        listed("scored on", facts["scored_on"]),
        facts["finished"] or "",
    ]
    definitions = [
        listed("AP:", facts["protocol"]),
        measurement_line("Mem", facts["measured_on"], facts["memory"], "{images} images in {steps} steps"),
        measurement_line("Inf time", facts["measured_on"], facts["fps"], "{images} images after {warmup_images}"),
    ]
    return ". ".join(["; ".join(filter(None, parts)), *filter(None, definitions)]) + "."


def measurement_line(label: str, devices: list[str], found: list[dict[str, Any]], extent: str) -> str:
    """What was measured, on what, how precisely and over how much; ``extent`` names keys of a measurement."""
    conditions = dict.fromkeys(f"{one['resolution']}, {one['precision']}, {extent.format_map(one)}" for one in found)
    definitions = ", ".join(dict.fromkeys(one["definition"] for one in found))
    return f"{label}: {definitions} ({'; '.join([', '.join(devices), *conditions])})" if found else ""


def listed(label: str, values: Iterable[Any]) -> str:
    """``label value, value``; empty if there is no value."""
    text = ", ".join(map(str, values))
    return f"{label} {text}".strip() if text else ""
