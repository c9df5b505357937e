"""Write the two synthetic sites that tests read: small chest phantoms as folders of class folders.

python tests/make_sites.py DIR
DIR/source/{train,test}/{normal,benign,malignant}/0000.png, DIR/target/... likewise
"""

from __future__ import annotations

import argparse
from pathlib import Path

from daptkit.data import PHANTOM_CLASSES, simulate_sites

CLASSES = PHANTOM_CLASSES


def make_sites(out: Path, *, n_source: int = 600, n_target: int = 600, size: int = 64) -> Path:
    """Write both sites under ``out`` and return it; a quarter of the images is the test split."""
    return simulate_sites(out, n_source=n_source, n_target=n_target, size=size)


def main() -> None:
    """Write both sites to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw two synthetic imaging sites.")
    parser.add_argument("out", type=Path, help="folder to write source/ and target/ to")
    print(make_sites(parser.parse_args().out))


if __name__ == "__main__":
    main()
