"""What every typed part of a recipe is made of. No torch here: flags are made from such models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DSA = "dsa:color_crop_cutout_flip_scale_rotate"
"""The augmentation of DSA, DM and their successors (Zhao and Bilen 2021, arXiv:2102.08259)."""

DSA_UNMIRRORED = "dsa:color_crop_cutout_scale_rotate"
"""The same for images that mean something else in the mirror: digits."""


class Model(BaseModel):
    """Frozen, and unknown keys are errors."""

    # defer_build: a model's validator is built when it is first used, which --help never does.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
