"""The two parts of a submission: their names, shapes and normalisation; no torch here."""

from __future__ import annotations

from dataclasses import dataclass

IPC = 10  # images a class, by the rules
TESTS = 10_000  # test images of either part
PROTOCOL = "eccv24@1"
ARCH = "convnet3"  # three layers, for images of 64 pixels too


@dataclass(frozen=True)
class Part:
    """One data set of the challenge; `benchmark` is what it is called elsewhere here."""

    name: str
    benchmark: str
    classes: int
    size: int

    @property
    def file(self) -> str:
        """The file of a submission."""
        return f"{self.name}.pt"

    @property
    def truth(self) -> str:
        """The file of the test images, with `images_val` and `labels_val`."""
        return f"{self.name}_test.pt"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the tensor in a submission: class after class, ten images each."""
        return (self.classes * IPC, 3, self.size, self.size)

    @property
    def limit(self) -> int:
        """Bytes that a file may have: the tensor as float64, and what is written around it."""
        count, channels, height, width = self.shape
        return 8 * count * channels * height * width + 2**20


PARTS = {
    part.name: part
    for part in (
        Part("cifar100", "cifar100", 100, 32),
        Part("tinyimagenet", "tiny-imagenet", 200, 64),
    )
}
