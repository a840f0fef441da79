"""What is wrong in a study file, as one line for a person."""

import difflib
import json
from typing import Any

from pydantic import ValidationError

from lvis_rcnn.config.schema import IN_WORDS
from lvis_rcnn.system.cli import InputError

# What is allowed where something is too short, by the type of the error.
TOO_SHORT = {"too_short": "at least one entry", "string_too_short": "a text that is not empty"}


def explained(error: ValidationError, where: str, schema: dict[str, Any]) -> InputError:
    """The most useful validation error as one line: key, value, what is allowed; further ones are counted.

    An unknown key comes first: it is often the misspelling of a key that is then missing.
    """
    # A list with a wrong entry is reported a second time, as too short.
    errors = [one for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
    first = min(errors, key=lambda one: {"extra_forbidden": 0, "missing": 2}.get(one["type"], 1))
    parts = [str(part) for part in first["loc"]]
    value = json.dumps(first["input"], default=str)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = keys_of(parts[:-1], schema)
        close = difflib.get_close_matches(parts[-1], known, n=1)
        fix = f"write {close[0]!r}" if close else "remove it"
        return InputError(
            f"{where}: {'.'.join(parts)}", f"unknown key{more}", allowed=", ".join(known) or "no such key", fix=fix
        )
    key = ".".join(parts) or "study file"
    if first["type"] == "missing":
        return InputError(f"{where}: {key}", f"missing{more}", fix="add the key")
    if first["type"] == "value_error":
        allowed = first["msg"].removeprefix("Value error, ")
        return InputError(f"{where}: {key}", f"does not fit together{more}", allowed=allowed, fix="change one of them")
    allowed = IN_WORDS.get(first.get("ctx", {}).get("pattern", ""), first["msg"].removeprefix("Input should be "))
    allowed = TOO_SHORT.get(first["type"], allowed)
    return InputError(f"{where}: {key}", f"is {value[:80]}{more}", allowed=allowed, fix="change the value")


def keys_of(path: list[str], schema: dict[str, Any]) -> list[str]:
    """Keys that the section at ``path`` knows, from the generated schema."""
    here: dict[str, Any] = schema
    for part in path:
        of_any_name: list[dict[str, Any] | None] = [here.get("items"), *here.get("patternProperties", {}).values()]
        here = next(filter(None, [here.get("properties", {}).get(part), *of_any_name]), {})
        options = here.get("anyOf", [here])
        reference = next((option["$ref"] for option in options if "$ref" in option), None)
        if reference is not None:
            here = schema["$defs"][reference.rsplit("/", 1)[-1]]
    return list(here.get("properties", {}))
