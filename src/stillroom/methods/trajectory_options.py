"""Groups of options of trajectory matching. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from stillroom.artefacts.schooling import SCHOOLINGS, NamedSchooling, Schooling
from stillroom.config import Model

EXPERTS = "experts"  # as the network that labels


class Window(Model):
    """Which stretch of an expert is matched: `epochs` of it from a drawn start on.

    Starts are drawn from `first` to below `last`. With `grow` the end of that range climbs from
    `begin` to `last` over so many steps (DATM's sequential generation).
    """

    first: int = Field(0, ge=0, strict=True, description="earliest epoch that a stretch starts at")
    last: int = Field(2, ge=1, strict=True, description="starts lie before this epoch")
    begin: int = Field(1, ge=1, strict=True, description="where that bound is at the first step")
    grow: int = Field(0, ge=0, strict=True, description="steps in which it climbs; 0: it stands")
    epochs: int = Field(2, ge=1, strict=True, description="epochs of the expert in a stretch")

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        bound = self.begin if self.grow else self.last
        if not self.first < bound <= self.last:
            raise ValueError(
                f"no start lies from first {self.first} to below {bound} (last {self.last})"
            )
        if not self.grow and self.begin != 1:
            raise ValueError("begin belongs to grow, the steps in which the bound climbs from it")
        return self

    @property
    def needed(self) -> int:
        """The last epoch of an expert that is ever read."""
        return self.last - 1 + self.epochs


class Parameters(Model):
    """Which parameters of the network count in the distance."""

    drop: Literal["none", "easy", "shallow"] = Field(
        "none",
        description="left out: those that fit best (EDF), or of the first layers (PAD)",
    )
    share: float = Field(0.0, ge=0, lt=1, description="share of them that is left out")

    @model_validator(mode="after")
    def _told_which(self) -> Parameters:
        if self.share and self.drop == "none":
            raise ValueError("share belongs to a drop: easy or shallow")
        if self.drop != "none" and not self.share:
            raise ValueError(
                f"drop {self.drop} leaves out a share of them; give share too, or drop none"
            )
        return self


class Areas(Model):
    """EDF's emphasis on the pixels in which a trained network sees the class of an image."""

    beta: float | None = Field(
        None, ge=0, description="gradients there are multiplied by this plus the map; none: nowhere"
    )
    every: int = Field(50, ge=1, strict=True, description="steps from one look to the next")
    threshold: float | None = Field(
        None, ge=0, le=1, description="a map is active from here on; none: from its mean on"
    )
    net: str = Field("auto", description="which network looks, an original model; auto: the own")
    layer: str = Field("auto", description="in which layer; auto: the deepest map of 4 x 4 or more")
    schooling: NamedSchooling = Field(
        SCHOOLINGS["default"], description="how that network is trained"
    )
    cam: Literal["grad-cam", "smooth-grad-cam++"] = Field(
        "grad-cam", description="as in the paper, or as in its code"
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Areas:
        if self.beta is None and self != Areas.model_construct():
            raise ValueError("these belong to a beta, without which nothing is emphasised")
        _refuse_schooled(self.net, self.schooling)
        return self


class Labeller(Model):
    """Who says which first images are known, and what learned labels begin as."""

    net: str = Field(
        EXPERTS, description="network, an original model; or the experts, as those who classify"
    )
    schooling: NamedSchooling = Field(
        SCHOOLINGS["default"], description="how that network is trained"
    )
    epoch: int | None = Field(
        None, ge=1, strict=True, description="of the experts; none: the end of their training"
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Labeller:
        if self.net == EXPERTS and self.schooling != SCHOOLINGS["default"]:
            raise ValueError("schooling is of a network; name it, or leave the experts theirs")
        if self.net != EXPERTS and self.epoch is not None:
            raise ValueError(f"epoch is of the experts, and {self.net} is another network")
        _refuse_schooled(self.net, self.schooling)
        return self


def let_go_of_groups(own: dict[str, Any], asked: dict[str, Any]) -> None:
    """Take the rest of a group that is switched off out of a preset's or row's fields."""
    areas, parameters = asked.get("areas"), asked.get("parameters")
    if isinstance(areas, dict) and areas.get("beta", 0) is None:
        own.pop("areas", None)
    if isinstance(parameters, dict) and parameters.get("drop") == "none":
        own.pop("parameters", None)


def _refuse_schooled(net: str, schooling: Schooling) -> None:
    if "=" in net and schooling != SCHOOLINGS["default"]:
        raise ValueError(f"{net[:80]} has weights already, so no schooling trains it; leave it out")
