"""Write the digits of scikit-learn as JPEG files of several sizes: FOLDER/CLASS/IMAGE.

python scripts/digits_as_photos.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIDES = (24, 32, 40)  # pixels


def main(folder: Path) -> None:
    whole = folder.with_suffix(".part")  # a folder that was not written to its end is not taken
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images.reshape(-1, 8, 8), labels)):
        path = whole / str(label) / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(np.uint8(image * (255 / 16)))
        size = SIDES[i % 3], SIDES[i // 3 % 3]
        pixels.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    whole.rename(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
