"""Thumbnails of a folder of images, with Pillow (`pip install pillow`).

The images are made first, if they are not there: pictures of the Mandelbrot set, ever closer.

    python3 -m docs.examples.thumbnails

The thumbnails are files; what the checkpoint has of each is its name and its size. So a result is
small, and what is done is known.
"""

import os
from pathlib import Path

from PIL import Image

from resumable_pool import ResumableRunner

SIZE = 128, 128


def make_images(folder: Path, number: int) -> None:
    """So many images, each a little closer to the set's edge than the one before."""
    folder.mkdir()
    for index in range(number):
        reach = 1.5 * 0.8**index
        corners = (-0.745 - reach, 0.113 - reach, -0.745 + reach, 0.113 + reach)
        Image.effect_mandelbrot((400, 400), corners, 60).save(folder / f"{index:03}.png")


def thumbnail(path: str) -> tuple[str, int]:
    """Make the thumbnail of an image; returns its name and how many bytes it has.

    A worker may be killed while it writes. The name is given last, so that a file of that name is
    always whole.
    """
    name = os.path.join("thumbnails", Path(path).stem + ".jpg")
    unfinished = f"{name}.new"
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail(SIZE)
        small.save(unfinished, "JPEG")
    os.replace(unfinished, name)
    return name, os.path.getsize(name)


if __name__ == "__main__":
    if not os.path.exists("images"):
        make_images(Path("images"), 30)
    os.makedirs("thumbnails", exist_ok=True)
    runner = ResumableRunner(thumbnail, "images/*.png", "thumbnails.pkl", timeout=60)
    print(runner.run())
    total = sum(size for _, size in runner.results.values())
    print(f"{len(runner.results)} thumbnails, {total:,} bytes")
