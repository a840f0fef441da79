"""Files of weights as they are found: recognised for what they are, read, and freed of what surrounds the weights.

A file that is not of ``torch.save`` is recognised by its first bytes, before any unpickler sees it.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import ValidationError

from lvis_rcnn.config.schema import HEADS, Model, Seesaw
from lvis_rcnn.system.cli import InputError
from lvis_rcnn.system.encodings import BYTE_ORDER_MARK, other_kind

Weights = Mapping[str, torch.Tensor]

AGAIN = "download it again, or name a file of torch.save, or train again"
TRUST = "if you trust who made this one, add --trust-pickle"
MMDETECTION = "name a file of MMDetection 2.x or 3.x"
# Place and first bytes of files of other programs, what they are, and what to do; others are in system.encodings.
FOREIGN = (
    (257, b"ustar", "is a tar archive", "unpack it and name the file of weights in it"),
    (0, b"\xff\xd8\xff", "is a JPEG image", "name the model first, then the pictures"),
    (0, b"\x89PNG", "is a PNG image", "name the model first, then the pictures"),
    (0, b"\x89HDF", "is an HDF5 file, as Keras writes", MMDETECTION),
    (2, b"\x12\x07pytorch", "is an ONNX file", MMDETECTION),
    (0, b"\x93NUMPY", "is an array of NumPy", MMDETECTION),
)
ZIP = b"PK\x03\x04"  # which torch.save writes
# Near the start of files of torch before 1.6, which are several pickles.
TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
# Near the start, too, where a protocol was asked for that torch does not load with weights_only.
OTHER_PROTOCOL = re.compile(rb"\x80([\x04\x05])\x95")

# Whose names of keys these are; a model of ours has torchvision's names, and says what it is.
OURS, TORCHVISION = "a model of lvis_rcnn", "a model of torchvision"
DETECTRON2, MMDET = "a model of detectron2", "a model of MMDetection"
CLASSIFIER_KIND, UNKNOWN = "bare weights, as ImageNet classifiers have", "weights of an unknown network"
KINDS = (
    (TORCHVISION, re.compile(r"backbone\.body\.")),
    (DETECTRON2, re.compile(r"backbone\.(bottom_up|fpn_lateral|res2)|proposal_generator\.")),
    (MMDET, re.compile(r"(backbone|neck|rpn_head|roi_head|bbox_head|mask_head)\.")),
    (CLASSIFIER_KIND, re.compile(r"layer1\.|conv1\.weight$")),
)

NAMED_KEYS = 3
MOST_NUMBERS = 2**31  # of a tensor: a small file can repeat one number as often as it likes


def first_names(names: Sequence[str]) -> str:
    """The first ``NAMED_KEYS`` names."""
    more = ", …" if len(names) > NAMED_KEYS else ""
    return ", ".join(names[:NAMED_KEYS]) + more


def read_content(path: Path, *, trust_pickle: bool) -> dict[str, Any]:
    """Content of a file of weights.

    Args:
        path: file of ``torch.save``, in the zip format or the older one, which published files have.
        trust_pickle: run the code that the file asks for, if it holds more than tensors and plain values.

    Raises:
        InputError: the file cannot be read, is of another program, or holds objects that need ``trust_pickle``.
    """
    try:
        if path.is_fifo() or path.is_char_device():
            what = "is a pipe or a device, and weights are read twice"
            raise InputError(str(path), what, fix="write it to a file first")
        refuse_foreign(path)
        with warnings.catch_warnings(action="ignore"):  # of the unpickler, about what others pickled
            content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except FileNotFoundError:
        raise InputError(str(path), "no such file", fix="name a file of weights (.pth) on this disk") from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder", fix="name the file of weights (.pth) in it") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # one wrong byte makes torch, pickle and zipfile raise errors of twenty kinds
        what, fix = unreadable(path, error)
        raise InputError(str(path), what, fix=fix) from None
    if not isinstance(content, dict):
        raise InputError(str(path), f"holds a {type(content).__name__}", allowed="a dictionary with a state_dict")
    return content


def unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Why a file cannot be loaded, and what to do, by the error of torch."""
    if isinstance(error, pickle.UnpicklingError):
        if needed := re.search(r"GLOBAL ([\w.]+)", str(error)):
            what = f"holds more than weights: an object of {needed[1]}, and loading it runs code that the file chooses"
            return what, f"use a published file; or, {TRUST}"
        if protocol := OTHER_PROTOCOL.search(first_bytes(path)):
            what = f"is written with pickle protocol {protocol[1][0]}, and loading that runs code that the file chooses"
            return what, f"write it again with torch.save, without pickle_protocol; or, {TRUST}"
    if isinstance(error, AttributeError) and "torch.storage" in str(error):
        what = "holds tensors of a type that files of torch before 1.6 cannot hold, as of 8 bits"
        return what, "save its weights as float32"
    if isinstance(error, ImportError) or str(error).startswith("Can't get attribute"):
        return f"holds an object of a package that is not installed: {error}", "install its package"
    return f"cannot be read as a file of weights ({type(error).__name__})", AGAIN


def first_bytes(path: Path) -> bytes:
    """The first kilobyte of a file."""
    with path.open("rb") as file:
        return file.read(1024)


def refuse_foreign(path: Path) -> None:
    """Refuse a file that ``torch.save`` did not write, and say what it is; OSError if it cannot be read."""
    start = first_bytes(path)
    for at, magic, what, fix in FOREIGN:
        if start.startswith(magic, at):
            raise InputError(str(path), what, fix=fix)
    header_bytes = int.from_bytes(start[:8], "little")
    if not start:
        raise InputError(str(path), "is empty (0 bytes)", fix=AGAIN)
    if not start.startswith(ZIP) and (kind := other_kind(start.removeprefix(BYTE_ORDER_MARK))):
        raise InputError(str(path), kind[0], allowed="a file of torch.save", fix=kind[1])
    if start[8:9] == b"{" and 8 + header_bytes <= path.stat().st_size:
        fix = "convert it: torch.save(safetensors.torch.load_file(FILE), 'weights.pth')"
        raise InputError(str(path), "is a safetensors file", fix=fix)
    if start.startswith(b"\x80") and TORCH_MAGIC not in start[:64]:
        raise InputError(str(path), "is a plain pickle, as detectron2 publishes (.pkl)", fix=MMDETECTION)
    if zipfile.is_zipfile(path):
        refuse_other_zip(path)


def refuse_other_zip(path: Path) -> None:
    """Refuse a zip that is not the format of ``torch.save``."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    parts = {name.rpartition("/")[2] for name in names}
    if "data.pkl" not in parts:
        raise InputError(
            str(path), f"is a zip of {first_names(names) or 'nothing'}", fix="unpack it, or name another file"
        )
    if "constants.pkl" in parts:
        raise InputError(str(path), "is a TorchScript program", fix="name the file of weights that it was made from")


def state_in(where: str, content: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """The weights of a file, of the model rather than of the optimizer, under the keys of others or bare; else None.

    Raises:
        InputError: a tensor is none that a network here can take; it is named.
    """
    state = content.get("state_dict", content.get("model", content))
    whole = isinstance(state, dict) and bool(state or "state_dict" in content)
    is_tensor = [isinstance(value, torch.Tensor) for value in state.values()] if whole else [False]
    if not all(is_tensor) and (state is content or not any(is_tensor)):
        return None
    for key, value in state.items():
        if why := oddity(key, value):
            allowed = "dense tensors of real numbers, and texts as their keys"
            raise InputError(where, f"tensor {key!r} {why}", allowed=allowed, fix="save its weights as float32")
    return dict(state)


def oddity(key: Any, value: Any) -> str:
    """Why no network here can take this tensor; empty where one can."""
    if not isinstance(value, torch.Tensor):
        return f"has {value!r:.40} ({type(value).__name__}) in its place"
    signs = {
        "has a key that is not a text": not isinstance(key, str),
        "has a shape, but no numbers (device meta)": value.is_meta,
        "is quantised": value.is_quantized,
        "is sparse or nested": value.layout != torch.strided or value.is_nested,
        "holds complex numbers": value.is_complex(),
        "holds whole numbers of 8 bits": value.dtype in (torch.int8, torch.uint8, torch.bool),
        f"has {value.numel():,} numbers": value.numel() > MOST_NUMBERS,
    }
    return next((why for why, is_seen in signs.items() if is_seen), "")


def freed(state: Weights) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights without ``module.`` before each key and without averages beside them, and notes that say so.

    As mmcv loads them: ``revise_keys`` of ``load_checkpoint`` removes the prefix, and ``ema_…``, the copies of
    ``EMAHook``, are no keys of a detector.
    """
    notes = []
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
        notes.append("its keys began with module., as DataParallel writes them")
    copies = state.keys() & {f"ema_{key.replace('.', '_')}" for key in state}
    if copies:
        notes.append(f"{len(copies)} averages (EMA) beside the weights are ignored")
    return {key: value for key, value in state.items() if key not in copies}, notes


def kind_of(state: Weights, meta: Mapping[str, Any]) -> str:
    """Whose weights these are, by the names of their keys."""
    kind = next((kind for kind, sign in KINDS if any(sign.match(key) for key in state)), UNKNOWN)
    return OURS if kind == TORCHVISION and "backbone" in meta else kind


def is_scale(value: Any) -> bool:
    """Whether a value is a scale of anchors."""
    return type(value) in (int, float) and 0 < value < float("inf")


def heads_in(where: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``Model`` in which an imported model says that its heads and anchors differ from the recipe's.

    Raises:
        InputError: it says something else.
    """
    heads = meta.get("heads") or {}
    allowed = {key: get_args(Model.model_fields[key].annotation) for key in HEADS}
    if isinstance(heads, dict) and all(
        is_scale(value) if key == "anchor_scale" else value in allowed.get(key, ()) for key, value in heads.items()
    ):
        return heads
    values = "; ".join(f"{key} {' or '.join(texts)}" for key, texts in allowed.items()) + "; anchor_scale above 0"
    raise InputError(where, f"says of its heads: {heads!s:.80}", allowed=values, fix="import it again")


def network_in(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``Model`` that a trained model says; empty where it says none."""
    settings = meta.get("settings")
    network = settings.get("model") if isinstance(settings, dict) else None
    return network if isinstance(network, dict) else {}


def seesaw_in(where: str, meta: Mapping[str, Any]) -> Seesaw:
    """Factors of the Seesaw loss that a trained model says, or the defaults; InputError where they are none."""
    given = network_in(meta).get("seesaw", {})
    try:
        return Seesaw.model_validate(given)
    except ValidationError:
        allowed = "mitigation and compensation, numbers from 0; epsilon, above 0 and up to 1; counters, from 1"
        raise InputError(where, f"says of its Seesaw loss: {given!s:.80}", allowed=allowed, fix="correct it") from None


def require_finite(where: str, state: Weights) -> None:
    """Refuse weights that are not all numbers of float32, which networks have here, or of which NaN would come.

    Raises:
        InputError: says how many tensors hold NaN or infinity, or variances below 0, and names the first.
    """
    negative = [key for key, value in state.items() if key.endswith("running_var") and bool((value.float() < 0).any())]
    if negative:
        what = f"{len(negative)} of {len(state)} tensors hold variances below 0 ({first_names(negative)})"
        raise InputError(where, what, fix="name another file: this one is damaged")
    bad = [
        key for key, value in state.items() if value.is_floating_point() and not bool(value.float().isfinite().all())
    ]
    if bad:
        too_large = all(bool(state[key].double().isfinite().all()) for key in bad)
        held = "numbers that are infinite as float32" if too_large else "NaN or infinity"
        what = f"{len(bad)} of {len(state)} tensors hold {held} ({first_names(bad)})"
        raise InputError(where, what, fix="name another file: the training that wrote this one diverged")
