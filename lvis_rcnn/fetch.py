"""Download one file of LVIS or of a published model, check it and unpack it.

    python -m lvis_rcnn fetch --name lvis_v1_val --out data/lvis_v1/annotations/lvis_v1_val.json
    python -m lvis_rcnn fetch --name train2017 --out data/coco/train2017.zip
    python -m lvis_rcnn fetch --weights lvis_v1_r50 --out data/weights

Nothing is downloaded that is there already: the file, or beside it the zip that contains it. The zip is kept. For an
annotation file without a published digest, FILE.seen.json records what was received.
"""

import argparse
import json
from pathlib import Path

import msgspec

from lvis_rcnn.config.study import DEFAULT_ZOO
from lvis_rcnn.config.zoo import DEFAULT_SOURCES, Source, load_sources, load_zoo, published_file
from lvis_rcnn.system.cli import InputError, check_kind, check_writable, log, run_step, step_parser
from lvis_rcnn.system.download import download, json_member, unpack_json
from lvis_rcnn.system.files import append_to_part, keep_part, locked_part, parsed, sha256_of_file


class Lists(msgspec.Struct):
    """The lists of an annotation file that are counted; their records stay text."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]


def fetch(source: Source, out: Path) -> None:
    """Download a file to ``out`` unless it exists.

    Raises:
        InputError: ``out`` is a folder, it cannot be downloaded or unpacked, or a zip that exists is another one.
    """
    if out.is_dir():
        fix = f"name the file, --out {out / source.provides}"
        raise InputError(f"--out {out}", "is a folder", allowed="the file to write", fix=fix)
    if out.exists():
        log.info("%s exists and is left alone", out)
        return
    archive = out.with_name(source.zip_name) if source.is_unpacked else out
    was_there = archive.exists()
    check = json_member if source.is_unpacked else None
    download(source.urls, archive, size_bytes=source.size_bytes, sha256=source.sha256 or "", check=check)
    if source.is_unpacked:
        if was_there:
            check_digest(archive, source)
        unpack_json(archive, out, check=lambda part: record_seen(source, archive, part, out))


def check_digest(archive: Path, source: Source) -> None:
    """Raise InputError if a zip that existed already is not the published one."""
    if source.sha256 is not None and (found := sha256_of_file(archive)) != source.sha256:
        fix = "delete it, or unpack it yourself if it is the right one"
        raise InputError(str(archive), f"its SHA-256 is {found}", allowed=source.sha256, fix=fix)


def record_seen(source: Source, archive: Path, part: Path, out: Path) -> None:
    """If no digest is published: count the records, write them down, and warn if they are not as expected.

    Raises:
        InputError: no annotation file.
    """
    if source.counts is None:
        return
    counts, known = counts_of(part, out), source.counts.model_dump()
    if counts != known:
        log.warning("warning: %s has %s; expected %s", out, in_words(counts), in_words(known))
    record = {
        "format": "lvis_rcnn.seen",
        "version": 1,
        "file": out.name,
        "size_bytes": part.stat().st_size,
        "sha256": sha256_of_file(part),
        "zip": archive.name,
        "zip_size_bytes": archive.stat().st_size,
        "zip_sha256": sha256_of_file(archive),
        "counts": counts,
        "known_counts": known,
        "is_as_known": counts == known,
    }
    seen = out.with_name(f"{out.name}.seen.json")
    with locked_part(seen) as file:
        file.truncate(0)
        append_to_part(file, seen, json.dumps(record, indent=2).encode() + b"\n")
        keep_part(file, seen)


def counts_of(part: Path, out: Path) -> dict[str, int]:
    """Number of records of each list; InputError, which names ``out``, if they cannot be read."""
    try:
        lists = parsed(msgspec.json.decode, part.read_bytes(), type=Lists)
    except ValueError as error:
        what = f"the file in the zip is no annotation file: {error}"
        raise InputError(str(out), what, fix="delete the zip beside it and fetch it again") from None
    return {"images": len(lists.images), "categories": len(lists.categories)}


def in_words(counts: dict[str, int]) -> str:
    """``5,000 images, 1,230 categories``."""
    return ", ".join(f"{number:,} {name}" for name, number in counts.items())


def step(args: argparse.Namespace) -> None:
    """Download one file."""
    check_kind("--out", args.out, is_folder=args.weights is not None)
    if not args.out.exists():
        check_writable("--out", args.out, is_folder=args.weights is not None)
    if args.weights is not None:
        models = load_zoo(args.zoo)
        if args.weights not in models:
            raise InputError(f"--weights {args.weights}", f"is not in {args.zoo}", allowed=", ".join(models))
        if args.out.is_file() or args.out.suffix == ".pth":
            fix = f"name its folder, --out {args.out.parent}"
            raise InputError(f"--out {args.out}", "is a file", allowed="with --weights a folder", fix=fix)
        log.info("%s is complete", published_file(models[args.weights], args.out))
        return
    sources = load_sources(args.sources)
    if args.name not in sources:
        raise InputError(f"--name {args.name}", f"is not in {args.sources}", allowed=", ".join(sources))
    fetch(sources[args.name], args.out)


def main() -> None:
    """Command line of this step."""
    parser = step_parser(__doc__)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--name", metavar="ROW", help="file of the dataset, a row of --sources")
    wanted.add_argument("--weights", metavar="MODEL", help="published model, a row of --zoo")
    parser.add_argument("--sources", type=Path, default=DEFAULT_SOURCES, metavar="FILE", help="files of the dataset")
    parser.add_argument("--zoo", type=Path, default=DEFAULT_ZOO, metavar="FILE", help="published models")
    out = "file of the dataset to write; with --weights the folder of published models"
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help=out)
    run_step(parser, step)


if __name__ == "__main__":
    main()
