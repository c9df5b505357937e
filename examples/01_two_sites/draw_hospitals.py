"""Draw three synthetic hospitals: two with labels, as sources, and one without, as target.

python examples/01_two_sites/draw_hospitals.py DIR writes to DIR

- hospital_a/CLASS/*.png and hospital_b/CLASS/*.png: folders of class folders;
- hospital_c/*.png: a folder of images, no labels;
- sources.csv: the images of A and B with label, patient_id and site;
- target.csv: the images of C with patient_id;
- labelled_sample.csv: half of C's patients, labelled by somebody, for scoring only;
- new/*.png: images that C took later.

Every patient is scanned twice. All of it is drawn; no patient was ever examined.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from daptkit.data import PHANTOM_CLASSES, SimulatedSite
from daptkit.data.phantom import draw_phantom

SCANS_PER_PATIENT = 2
HOSPITALS = {
    "A": SimulatedSite(prevalence=(0.34, 0.33, 0.33), noise=0.02),
    "B": SimulatedSite(prevalence=(0.5, 0.3, 0.2), contrast=0.9, offset=0.04, noise=0.03),
    "C": SimulatedSite(
        prevalence=(0.55, 0.28, 0.17), gamma=1.5, contrast=0.75, offset=0.12, blur=0.01, noise=0.05
    ),
}

Row = dict[str, str]


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description="Draw three synthetic hospitals.")
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--images", type=int, default=600, help="a hospital (%(default)s)")
    parser.add_argument("--size", type=int, default=48, help="pixels, at least 32 (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args()
    draw_hospitals(options.out, images=options.images, size=options.size, seed=options.seed)
    print(options.out)


def draw_hospitals(out: Path, *, images: int, size: int, seed: int) -> None:
    """Draw ``images`` images of each hospital, a quarter as many new ones, and the manifests."""
    sources = [
        *draw_site(out, "A", "hospital_a/{label}", images=images, size=size, seed=seed),
        *draw_site(out, "B", "hospital_b/{label}", images=images, size=size, seed=seed + 1),
    ]
    target = draw_site(out, "C", "hospital_c", images=images, size=size, seed=seed + 2)
    draw_site(out, "C", "new", images=images // 4, size=size, seed=seed + 3)
    patients = sorted({row["patient_id"] for row in target})
    rng = np.random.default_rng(seed)
    chosen = set(rng.choice(patients, len(patients) // 2, replace=False))
    sample = [row for row in target if row["patient_id"] in chosen]
    write_csv(out / "sources.csv", ("path", "label", "patient_id", "site"), sources)
    write_csv(out / "target.csv", ("path", "patient_id"), target)
    write_csv(out / "labelled_sample.csv", ("path", "label", "patient_id"), sample)


def draw_site(out: Path, site: str, folder: str, *, images: int, size: int, seed: int) -> list[Row]:
    """Draw the images of a hospital and return their rows.

    Args:
        out: folder that the paths of the rows are relative to.
        site: a key of :data:`HOSPITALS`.
        folder: where the images go; ``{label}`` stands for their class.
        images: how many.
        size: edge in pixels.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    scanner = HOSPITALS[site]
    rows = []
    for number in range(images):
        patient = number // SCANS_PER_PATIENT
        if number % SCANS_PER_PATIENT == 0:
            label = str(rng.choice(PHANTOM_CLASSES, p=scanner.prevalence))
            phantom = draw_phantom(label, size, rng)
        levels = np.round(255 * scanner.scan(phantom, rng)).astype(np.uint8)
        path = f"{folder.format(label=label)}/{number:04d}.png"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels).save(out / path)
        rows.append({"path": path, "label": label, "patient_id": f"{site}{patient}", "site": site})
    return rows


def write_csv(path: Path, columns: tuple[str, ...], rows: list[Row]) -> None:
    """Write some columns of the rows as a manifest."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
