"""Turn files of MMDetection into models and back, and show what a file of weights is.

A published file becomes a model.pth, and a model.pth a file that MMDetection 2.x and 3.x load:

    python -m lvis_rcnn weights import mask_rcnn_r50_fpn_….pth --backbone r50 --store val.store --out model.pth
    python -m lvis_rcnn weights export model.pth --out mask_rcnn_r50_fpn.pth --publish
    python -m lvis_rcnn weights show FILE.pth
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvis_rcnn.config.schema import BACKBONES
from lvis_rcnn.config.zoo import digest_in_name
from lvis_rcnn.dataset.store import open_store
from lvis_rcnn.model.class_names import name_notes
from lvis_rcnn.model.mmdet import (
    COUNTER,
    MmdetFile,
    backbone_of,
    converted,
    read_mmdet,
    write_mmdet,
)
from lvis_rcnn.model.weight_files import (
    CLASSIFIER_KIND,
    MMDET,
    MMDETECTION,
    OURS,
    first_names,
    freed,
    kind_of,
    read_content,
    require_finite,
    state_in,
)
from lvis_rcnn.model.weights import load_model, save_model
from lvis_rcnn.system.cli import InputError, add_command, add_number, add_output, log, run_step, step_parser
from lvis_rcnn.system.files import sha256_of_file, write_json
from lvis_rcnn.system.provenance import code_version


def import_mmdet(
    file: MmdetFile, backbone: str, names: tuple[str, ...], out: Path, report: Path | None
) -> dict[str, Any]:
    """Write a file of MMDetection as one of our models; returns its record.

    Args:
        file: as :func:`read_mmdet` returns it.
        backbone: row of ``config.schema.BACKBONES`` that it must be.
        names: of the categories, in the annotations' order.
        out: model.pth to write.
        report: JSON file for the record.

    Raises:
        InputError: backbone, classes, keys or shapes do not fit.
    """
    state = converted(file, backbone, len(names))
    notes = [*file.notes, *name_notes(str(file.path), file.classes, names)]
    if not file.config.texts:
        notes.append("the file has no config: that it is of pytorch style, trained on RGB, cannot be checked")
    added = sum(key.endswith(COUNTER) for key in state) - sum(key.endswith(COUNTER) for key in file.state)
    if added:
        notes.append(f"the file has no {COUNTER}: {added} are set to 0; nothing reads them")
    source: dict[str, Any] = {"file": file.path.name, "sha256": file.sha256, **recorded_training(file)}
    meta = {"backbone": backbone, "seed": None, "CLASSES": names, "source": source, "code_version": code_version()}
    if heads := file.heads:
        meta["heads"] = heads
        notes.append(f"it is no plain Mask R-CNN: {', '.join(f'{key} {value}' for key, value in heads.items())}")
    save_model(out, state, meta)
    record = {"format": "lvis_rcnn.import", "version": 1, **source, "backbone": backbone, "num_categories": len(names)}
    record |= {"notes": notes, "model_sha256": sha256_of_file(out), "code_version": code_version()}
    if report is not None:
        write_json(report, record)
    return record


def recorded_training(file: MmdetFile) -> dict[str, str | int | None]:
    """What the meta of a file tells about its training; None for what it does not."""
    keys = ("mmdet_version", "mmengine_version", "epoch", "iter", "seed", "time")
    values = {key: file.meta.get(key) for key in keys}
    return {key: value if isinstance(value, (str, int)) else None for key, value in values.items()}


def page_of(path: Path, trust_pickle: bool) -> Iterator[str]:
    """Lines that describe a file of weights.

    Raises:
        InputError: the file cannot be read.
    """
    content = read_content(path, trust_pickle=trust_pickle)
    digest, named = sha256_of_file(path), digest_in_name(path.name)
    fits = "as in its name" if digest.startswith(named or "") else f"DIFFERS from its name, {named}"
    yield f"file       {path}, {path.stat().st_size / 2**20:.1f} MiB"
    yield f"sha256     {digest}, {fits if named else 'none in its name'}"
    meta = content["meta"] if isinstance(content.get("meta"), dict) else {}
    state, notes = freed(state_in(str(path), content) or {})
    file, kind = MmdetFile(path, digest, state, meta, tuple(notes)), kind_of(state, meta)
    yield f"kind       {kind}{version_of(file) if kind == MMDET else ''}"
    backbone = meta.get("backbone") or backbone_of(state, PREFIXES.get(kind, "backbone."))
    yield f"backbone   {backbone or 'none of the four'}"
    yield f"tensors    {len(state)}, {sum(value.numel() for value in state.values()):,} numbers"
    lacking = f"none of weights, but {first_names([str(key) for key in content]) or 'nothing'}"
    yield f"keys       {first_names(list(state)) or lacking}"
    yield from (f"note       {note}" for note in file.notes)
    if file.classes:
        yield f"classes    {len(file.classes)}: {first_names(file.classes)}"
    for key, value in recorded_training(file).items():
        if value is not None:
            yield f"{key:<10} {value}"
    if kind == MMDET:
        yield f"import     {import_verdict(path, trust_pickle)}"
    else:
        require_finite(str(path), state)


def version_of(file: MmdetFile) -> str:
    """Version of MMDetection, with a blank before it."""
    version = "3.x" if "dataset_meta" in file.meta else file.mmdet_version
    return f" {version}" if version else ", which does not say its version"


def import_verdict(path: Path, trust_pickle: bool) -> str:
    """Whether a file can be imported, and why not."""
    try:
        file = read_mmdet(path, trust_pickle=trust_pickle)
        classes = file.num_categories or 0
        if classes < 1:
            raise InputError(str(path), "has no classifier of boxes (roi_head.bbox_head.fc_cls)", fix=MMDETECTION)
        backbone = backbone_of(file.state, "backbone.") or next(iter(BACKBONES))
        converted(file, backbone, classes)
    except InputError as error:
        return f"no: {error}"
    return f"yes, with --backbone {backbone} and annotations of {classes} categories"


def step_import(args: argparse.Namespace) -> None:
    """Turn a file of MMDetection into a model.pth.

        python -m lvis_rcnn weights import mask_rcnn_r50_fpn_….pth --backbone r50 --store val.store --out model.pth

    A file is refused if its body is not that of --backbone, or its classes are not those of the annotations in their
    order.
    """
    file = read_mmdet(args.file, trust_pickle=args.trust_pickle)
    if args.store is not None:
        names = tuple(category.name for category in open_store(args.store).categories)
    else:
        names = file.classes or ()
        if len(names) != args.categories:
            what = f"names {len(names)} classes, not {args.categories}"
            raise InputError(str(args.file), what, fix="name the annotations with --store")
    record = import_mmdet(file, args.backbone, names, args.out, args.report)
    for note in record["notes"]:
        log.info("note: %s", note)
    log.info("wrote %s: %s, %d categories, from %s", args.out, args.backbone, len(names), args.file.name)


def step_export(args: argparse.Namespace) -> None:
    """Turn a model.pth into a file of MMDetection.

        python -m lvis_rcnn weights export results/mini/r50/seed0/model.pth --out mask_rcnn_r50_fpn.pth --publish

    MMDetection 2.x and 3.x load it with the config of the backbone.
    """
    state, meta = load_model(args.model)
    log.info("wrote %s", write_mmdet(args.out, state, meta, publish=args.publish))


def step_show(args: argparse.Namespace) -> None:
    """Show what a file of weights is.

        python -m lvis_rcnn weights show mask_rcnn_r50_fpn_….pth

    Size, digest, maker, backbone, classes, and whether it can be imported. Nothing is written.
    """
    for line in page_of(args.file, args.trust_pickle):
        log.info("%s", line)


# Of the keys of a body.
PREFIXES = {OURS: "backbone.body.", CLASSIFIER_KIND: ""}
STEPS = {"import": step_import, "export": step_export, "show": step_show}


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    parts = {name: add_command(commands, name, step.__doc__) for name, step in STEPS.items()}
    for name in ("import", "show"):
        parts[name].add_argument("file", type=Path, metavar="FILE", help="file of weights")
        trust = "run the code that the file asks for if it holds more than weights: only if you trust who made it"
        parts[name].add_argument("--trust-pickle", action="store_true", help=trust)
    parts["import"].add_argument(
        "--backbone", choices=BACKBONES, required=True, help="row of the table that it must be"
    )
    categories = parts["import"].add_mutually_exclusive_group(required=True)
    categories.add_argument("--store", type=Path, metavar="DIR", help="annotation store whose categories it must have")
    add_number(categories, "--categories", "number of categories, whose names the file holds", 1, metavar="N")
    add_output(parts["import"], "--out", "model.pth to write", suffix=".pth")
    add_output(parts["import"], "--report", "JSON record to write", suffix=".json", required=False)
    parts["export"].add_argument("model", type=Path, metavar="MODEL", help="model.pth")
    add_output(parts["export"], "--out", "file of MMDetection to write", suffix=".pth")
    parts["export"].add_argument("--publish", action="store_true", help="append 8 characters of its digest to its name")
    run_step(parser, lambda args: STEPS[args.command](args))


if __name__ == "__main__":
    main()
