"""Save and restore a run: the newest checkpoint and the one before it, each whole."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from lvis_rcnn.command import InputError, log
from lvis_rcnn.files import atomic_file

NEWEST = "checkpoint.pth"
NEXT = "next.pth"
PREVIOUS = "previous.pth"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``state`` as the newest checkpoint; the one it replaces stays as the previous one.

    Killed at any moment, a whole file is left under one of the names that :func:`load_checkpoint` tries.
    """
    newest = folder / NEWEST
    with atomic_file(folder / NEXT) as temporary:
        torch.save(state, temporary)
    if newest.exists():
        os.replace(newest, folder / PREVIOUS)
    os.replace(folder / NEXT, newest)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, or None where there is none."""
    for name in (NEWEST, NEXT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            log.warning("warning: %s is damaged (%s); trying the one before", path, type(error).__name__)
    return None


def save_model(path: Path, state_dict: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write weights and what they are, without optimizer."""
    with atomic_file(path) as temporary:
        torch.save({"meta": meta, "state_dict": state_dict}, temporary)


def load_model(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and meta of a file that :func:`save_model` wrote.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content["state_dict"], content["meta"]
    except FileNotFoundError:
        raise InputError(str(path), "no such model", mend="train it first") from None
    except (RuntimeError, EOFError, OSError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            str(path),
            f"no readable model ({type(error).__name__})",
            allowed="a model.pth of lvis_rcnn.train",
            mend="train again, or name another file",
        ) from None


def drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is done; its model stays."""
    for name in (NEWEST, NEXT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
