"""The text around the results table: its title, how to read it, what failed, and how its numbers were made."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lvis_rcnn.config.study import Study
from lvis_rcnn.evaluation.calibration import title_of
from lvis_rcnn.evaluation.uncertainty import FEWEST_SEEDS, resamples_text
from lvis_rcnn.reporting.rows import (
    COMPARED,
    RESCORED,
    TRAINED,
    Row,
    difference,
    is_unranked,
    kept_sentence,
    missing_of,
)
from lvis_rcnn.runs.points import last_sentence
from lvis_rcnn.runs.records import FAILED, QUANTITIES

# Behind the title of a row whose initial weights were trained on validation images.
SEEN_BEFORE = "¹"
# Behind numbers that were measured on another device than the first of their column.
MARKS = ("", "†", "‡", "§")
OF_DEVICE = {"memory_gb": "Mem", "fps": "Inf time"}
# Behind a speed that differs from another row's by no more than their spread, and in place of one beside other work.
UNRANKED, OTHER_WORK = "≈", "other work ran"


def places(rows: Sequence[Row], name: str) -> list[str]:
    """Every place where memory or speed was measured; the first needs no mark."""
    return list(dict.fromkeys(place for row in rows if (place := row.place(name))))


def titled(study: Study) -> str:
    """The study's title, with its name in it."""
    named = re.search(rf"(?<![\w.]){re.escape(study.study)}(?![\w.])", study.title)
    return study.title if named else f"{study.title} ({study.study})"


def measured_line(rows: Sequence[Row]) -> str:
    """How to read memory and speed: what the marks mean, and why a speed is not shown; empty where all is plain."""
    compared: dict[str, list[str]] = {}
    for name, label in OF_DEVICE.items():
        first, *others = places(rows, name) or [""]
        marked = [f"{MARKS[min(at, len(MARKS) - 1)]} {place}" for at, place in enumerate(others, start=1)]
        if marked:
            compared.setdefault(f"unmarked {first}; {'; '.join(marked)}", []).append(label)
    parts = [f"Compare {' and '.join(labels)} only where marked alike: {text}." for text, labels in compared.items()]
    if any(row.fps_quartiles for row in rows):
        parts.append("In parentheses behind Inf time: quartiles over the images.")
    if any(is_unranked(row, rows) for row in rows):
        parts.append(f"{UNRANKED} = its range over images overlaps that of another row: the measurement ranks neither.")
    if disturbed := [f"{row.title} ({row.other_work})" for row in rows if row.other_work]:
        parts.append(f"No Inf time where {OTHER_WORK} during the measurement: {', '.join(disturbed)}.")
        parts.append("To measure again, delete measure.json of the row and start Snakemake with nothing else running.")
    return " ".join(parts)


def reading_line(rows: Sequence[Row]) -> str:
    """How to read the numbers, and which seeds are missing from a mean."""
    parts = ["APr, APc, APf: mask AP of rare, common and frequent categories. All AP in percent."]
    parts += protocol_sentences(rows)
    seeds = max(len(row.runs) for row in rows)
    if seeds > 1:
        parts.append(f"Mean ± sample standard deviation over {seeds} seeds.")
    parts += [interval_sentence(rows), seen_before_sentence(rows)]
    lacks = {True: "no interval", False: "not compared with other rows"}
    parts += [
        f"{row.title}: {lacks[len(row.runs) > 1]}, since {row.why_no_intervals}."
        for row in rows
        if row.why_no_intervals
    ]
    if any(difference(row, name) is not None for row in rows for name in COMPARED):
        parts.append("In parentheses: published value and, for AP, difference (ours - published).")
        parts.append(f"! = difference larger than expected from noise: {noise_of(rows, seeds)}.")
    for row in rows:
        if any(not run.missing for run in row.runs):
            late = {run.seed: next(iter(run.missing.values())) for run in row.runs if run.missing}
            waits = {seed: why for seed, why in late.items() if not why.startswith(FAILED)}
            parts += [f"{row.title}, seed {seed}: {why}." for seed, why in waits.items()]
    return " ".join(filter(None, parts))


def protocol_sentences(rows: Sequence[Row]) -> Iterator[str]:
    """What the groups of columns of further protocols are, as far as they are scored."""
    for one in dict.fromkeys(one for row in rows for one in row.protocols):
        scored = [run.records.get("evaluate", {}).get("protocols", {}) for row in rows for run in row.runs]
        if lines := dict.fromkeys(found[one.name]["protocol"] for found in scored if one.name in found):
            yield f"{one.title(rows[0].detections_kept)}, of the same detections: {' / '.join(lines)}."


def failures_line(rows: Sequence[Row]) -> str:
    """What failed, each error once, with the rows or seeds that it ended; empty where nothing failed."""
    ended: dict[str, list[str]] = {}
    for row in rows:
        for run in row.runs:
            name = row.title if len(row.runs) == 1 else f"{row.title} seed {run.seed}"
            # An error is that of the first step that lacks its record; the name of a shared step is in its text.
            of_steps = {why: step for step, why in reversed(missing_of(row, run).items()) if why.startswith(FAILED)}
            for why, step in of_steps.items():
                error = f"{step}: " * (step != run.steps[0]) + why.removeprefix(FAILED)
                ended.setdefault(error, []).append(name)
    return " ".join(f"Failed: {', '.join(names)}: {error.rstrip('.')}." for error, names in ended.items())


def so_far_line(rows: Sequence[Row]) -> str:
    """AP of runs that are not scored yet, by weights that their trainings kept; empty where there is none."""
    found = [
        f"{row.title}{f', seed {run.seed}' if len(row.runs) > 1 else ''}, {last_sentence(run.so_far)}"
        for row in rows
        for run in row.runs
        if run.so_far and "evaluate" in run.missing
    ]
    return f"Unfinished, AP so far: {'; '.join(found)}." if found else ""


def seen_before_sentence(rows: Sequence[Row]) -> str:
    """What the mark behind a title means; empty where there is none."""
    number = max(row.images_seen_before for row in rows)
    return (
        f"{SEEN_BEFORE} AP is not of unseen images: training began with the weights of a COCO detector (model.weights: "
        f"coco), which was trained on {number:,} of the validation images."
        if number
        else ""
    )


def interval_sentence(rows: Sequence[Row]) -> str:
    """What square brackets are, and why there are none; empty where nobody asked for any."""
    scored = [[run.records["evaluate"] for run in row.runs if "evaluate" in run.records] for row in rows]
    numbers = {found["intervals"]["resamples"] for of_row in scored for found in of_row if found.get("intervals")}
    if not numbers:
        return ""
    resamples = "; ".join(map(resamples_text, sorted(numbers)))
    if not any(row.interval(name) for row in rows for name in QUANTITIES):
        parts = [f"No intervals ({resamples})."]
    else:
        what = "95 % interval of the mean AP over sets of as many images, of the same categories"
        parts = [f"In square brackets: {what} ({resamples})."]
    if any(len(of_row) >= FEWEST_SEEDS for of_row in scored):
        parts.append("Intervals of means include the variance between seeds.")
    if any(1 < len(of_row) < FEWEST_SEEDS for of_row in scored):
        parts.append("Two seeds have no interval: they cannot show how much seeds vary.")
    return " ".join(parts)


def noise_of(rows: Sequence[Row], seeds: int) -> str:
    """Beyond which noise a difference to a published value is marked."""
    trained = (
        "outside the 95 % prediction interval of one more seed (Student's t)" if seeds > 1 else "not told from one seed"
    )
    of = {RESCORED: "for the same weights, more than the rounding of the published value"}
    of |= {TRAINED: f"for rows trained here, {trained}"}
    return "; ".join(text for source, text in of.items() if any(row.source == source for row in rows))


def files_line(rows: Sequence[Row]) -> str:
    """The published files that were read, with the digest of their bytes; empty where there are none."""
    files = [f"{file['file']} (sha256 {file['sha256']})" for file in published_files(rows)]
    return f"Published files scored here: {'; '.join(files)}." if files else ""


def published_files(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Name and digest of each published file that was read."""
    records = [run.records["import"] for row in rows for run in row.runs if "import" in run.records]
    return [{key: record[key] for key in ("file", "sha256")} for record in records]


def provenance(study: Study, rows: Sequence[Row]) -> dict[str, Any]:
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

    scored = [(row, run.records["evaluate"]) for row in rows for run in row.runs if "evaluate" in run.records]
    named = (f"{found['images']:,} validation images of {row.scored_on}" for row, found in scored if "images" in found)
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
        "passes": list(filter(None, all_of("train", "passes"))),
        "images_seen": all_of("train", "images_seen"),
        "finished": max((str(at)[:10] for at in all_of("train", "finished_at")), default=None),
        "protocol": all_of("evaluate", "protocol"),
        "detections_kept": kept_sentence(rows),
        "scored_on": list(dict.fromkeys(named)),
        "measured_on": all_of("measure", "device"),
        "memory": list(filter(None, all_of("measure", "training"))),
        "fps": all_of("measure", "inference"),
        "published_files": published_files(rows),
    }


def provenance_line(study: Study, rows: Sequence[Row]) -> str:
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
        listed("scores calibrated by", map(title_of, study.calibrations)),
        listed("trained with", facts["passes"]),
        listed("images seen by a run:", facts["images_seen"]),
        listed("scored on", facts["scored_on"]),
        facts["finished"] or "",
    ]
    definitions = [listed("AP:", facts["protocol"]), facts["detections_kept"], *measurement_lines(facts).values()]
    return ". ".join(["; ".join(filter(None, parts)), *filter(None, definitions)]) + "."


def measurement_lines(facts: dict[str, Any]) -> dict[str, str]:
    """What memory and speed of :func:`provenance` are, and how they were measured, a text each."""
    timed = "{images} images after {warmup_images}, {masks} masks"
    return {
        "memory": measurement_line("Mem", facts["measured_on"], facts["memory"], "{images} images in {steps} steps"),
        "fps": measurement_line("Inf time", facts["measured_on"], facts["fps"], timed),
    }


def measurement_line(label: str, devices: list[str], found: list[dict[str, Any]], extent: str) -> str:
    """What was measured, on what, how precisely and over how much; ``extent`` names keys of a measurement."""
    conditions = dict.fromkeys(f"{one['resolution']}, {one['precision']}, {extent.format_map(one)}" for one in found)
    definitions = ", ".join(dict.fromkeys(one["definition"] for one in found))
    return f"{label}: {definitions} ({'; '.join([', '.join(devices), *conditions])})" if found else ""


def listed(label: str, values: Iterable[Any]) -> str:
    """``label value, value``; empty if there is no value."""
    text = ", ".join(map(str, values))
    return f"{label} {text}".strip() if text else ""
