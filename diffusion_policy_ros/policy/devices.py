"""Where to compute."""

from __future__ import annotations

import torch

from diffusion_policy_ros.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device `name`; "auto" is the GPU when there is one.

    Raises:
        UserError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"no device '{name}' here", "device", "use auto or cpu") from None
    return device
