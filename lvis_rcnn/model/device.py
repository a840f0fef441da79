"""Numbers that the host gives to a device, without waiting for it."""

from functools import cache

import torch
from jaxtyping import Float, Shaped


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Float[torch.Tensor, " values"]:
    """Numbers on a device, copied there once: at every copy of a number the host would wait for the device."""
    with torch.inference_mode(False):  # so that training may use what inference asked for first
        return torch.tensor(values, device=device)


def sent(device: torch.device, *values: Shaped[torch.Tensor, "..."]) -> list[Shaped[torch.Tensor, "..."]]:
    """Numbers of the host, of one type, on a device, in one copy that the host does not wait for."""
    flat = torch.cat([value.flatten() for value in values])
    if device.type == "cuda":
        flat = flat.pin_memory()
    parts = flat.to(device, non_blocking=True).split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
