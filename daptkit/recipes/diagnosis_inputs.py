"""What a diagnosis rests on: features, logits, patients and statistics of both sites' images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from daptkit.config import AdaptConfig
from daptkit.data import ImageTable, to_float
from daptkit.data.image import COVARIATES
from daptkit.errors import DataError
from daptkit.model import AdaptNet
from daptkit.report.embedding import sample_rows
from daptkit.report.stages import (
    MAX_PER_DOMAIN,
    backbone_stages,
    backbone_summaries,
    stage_distances,
)
from daptkit.shift import PredictionRule
from daptkit.shift.heads import unseen_logits
from daptkit.shift.imagestats import image_statistics
from daptkit.shift.movedprior import drawn_patients
from daptkit.train.device import resolve_device
from daptkit.train.domains import Domain, Rows
from daptkit.train.prepare import Prepared, prepare
from daptkit.train.progress import Reporter
from daptkit.train.trunk import with_trunk

Floats = npt.NDArray[np.float64]

MAX_IMAGES = 5000
"""Images of a site, of whole patients, that are tested; more would cost time and show no more."""
MAX_STATISTICS = 1000
"""Images of a site, of whole patients, whose statistics are compared."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One site's images.

    Args:
        domain: images and cached features of all of them.
        rows: (N,) rows of the domain that features and logits are of.
        features: (N, D) of the frozen backbone.
        logits: (N, K) of a head that has not seen the image's patient.
        tested: positions in ``rows`` of the images that the tests use, of whole patients.
    """

    domain: Domain
    rows: Rows
    features: Floats
    logits: Floats
    tested: Rows

    @property
    def table(self) -> ImageTable:
        """What is known of the domain's images."""
        return self.domain.images.table

    @property
    def groups(self) -> Rows:
        """Patient of each of ``rows``, (N,)."""
        return self.domain.groups[self.rows]

    @property
    def tested_groups(self) -> Rows:
        """Patient of each of the tested images."""
        return self.groups[self.tested]

    @property
    def given_groups(self) -> Rows | None:
        """The same, ``None`` where no patient is known and no two images are of one file."""
        found = self.tested_groups
        alone = not self.table.patients_known and len(np.unique(found)) == len(found)
        return None if alone else found

    def of_tested(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values (N, ...) of the tested images."""
        return values[self.tested]


@dataclass(frozen=True, kw_only=True)
class Sites:
    """Both sites, seen by one frozen backbone, or by a model of a run.

    Args:
        source: held-out images; every one is, where heads are cross-fitted.
        target: images of the split that is diagnosed.
        labels: (N,) classes of the source's images.
        prepared: data they are of.
        net: the network that features are of.
        device: where the network runs.
        config: options.
        by: whose logits they are: ``"heads"``, or a run's ``"source-only"`` or ``"adapted"`` model.
        rule: of the run's model; heads are calibrated anew.
    """

    source: Site
    target: Site
    labels: Rows
    prepared: Prepared
    net: AdaptNet
    device: torch.device
    config: AdaptConfig
    by: str = "heads"
    rule: PredictionRule | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.prepared.classes

    @property
    def predicted(self) -> Rows:
        """Class that each of the source's images is called, (N,)."""
        logits = self.source.logits
        if self.rule is not None:
            return np.asarray(self.rule.predict(logits, "source"), dtype=np.int64)
        return np.asarray(logits.argmax(axis=1), dtype=np.int64)

    @property
    def trained(self) -> bool:
        """Whether the backbone's weights were loaded or trained."""
        c = self.config
        return self.by != "heads" or bool(c.pretrained or c.pretrained_path or c.init_from)


def read_sites(config: AdaptConfig, reporter: Reporter) -> Sites:
    """Read both sites, pass them through the backbone and predict each image by a head.

    Args:
        config: options; ``finetune`` is ``"full"`` although nothing is trained, since a backbone
            without loaded weights is a backbone too.
        reporter: where progress goes.

    Raises:
        DataError: images, labels or weights that cannot be used.
        UsageError: options that do not fit together.
    """
    device = resolve_device(config.device)
    prepared = prepare(config, device, reporter, ())
    net = prepared.network.make(device)
    for one in prepared.network.alignments:
        reporter.line(
            f"the model's method '{one.method}' aligned its target; here images are diagnosed as"
            " they are"
        )
    data, hits = with_trunk(
        prepared.data,
        net,
        prepared.conversion,
        prepared.fingerprints,
        device,
        reporter,
        config,
    )
    prepared = replace(prepared, data=data, cache_hits=hits)
    assert data.source.labels is not None
    rows_s = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    rows_s = rows_s[drawn_patients(data.source.groups[rows_s], MAX_IMAGES, config.seed)]
    rows_t = data.target_rows
    x, t = _features(data.source, rows_s), _features(data.target, rows_t)
    labels = data.source.labels[rows_s]
    reporter.line("fitting heads on the frozen features, five folds of patients")
    groups_t = data.target.groups[rows_t]
    z_s, z_t = unseen_logits(
        x,
        labels,
        t,
        source_groups=data.source.groups[rows_s],
        target_groups=groups_t,
        seed=config.seed,
        num_classes=data.task.num_classes,
    )
    return Sites(
        source=Site(
            domain=data.source,
            rows=rows_s,
            features=x,
            logits=z_s,
            tested=np.arange(len(rows_s)),
        ),
        target=Site(
            domain=data.target,
            rows=rows_t,
            features=t,
            logits=z_t,
            tested=drawn_patients(groups_t, MAX_IMAGES, config.seed),
        ),
        labels=labels,
        prepared=prepared,
        net=net,
        device=device,
        config=config,
    )


def site_statistics(site: Site, seed: int) -> tuple[Rows, dict[str, npt.NDArray[Any]]]:
    """Return patients (n,) and statistics and covariates (n,) of some images of whole patients.

    Covariates are the allow-listed columns that the manifest fills for some image: manufacturer,
    model, field strength.
    """
    rows = site.rows[site.tested]
    rows = rows[drawn_patients(site.domain.groups[rows], MAX_STATISTICS, seed)]
    parts = [
        image_statistics(to_float(site.domain.images.batch(chunk)).numpy())
        for chunk in np.array_split(rows, -(-len(rows) // 128))
    ]
    found: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    for name in COVARIATES:
        column = site.table.extra.get(name)
        if column is not None and any(column):
            found[name] = np.array([column[row] for row in rows.tolist()])
    return site.domain.groups[rows], found


def drop_colours(source: dict[str, Any], target: dict[str, Any]) -> None:
    """Leave out what is said of colours where no image of either site has any."""
    if not any(np.any(found.get("saturation", 0.0)) for found in (source, target)):
        for found in (source, target):
            for name in [
                n for n in found if n.startswith(("saturation", "red_", "green_", "blue_"))
            ]:
                del found[name]


def measure_stages(sites: Sites) -> dict[str, Any]:
    """Return proxy A-distance and MMD^2 at stages of the backbone, of its features and the logits.

    At most 256 images a site, as in the report of a run; ``{"layers": [], "note"}`` where nothing
    could be tapped.
    """
    seed = sites.config.seed
    both = {"source": sites.source, "target": sites.target}
    places = {n: sample_rows(s.tested, MAX_PER_DOMAIN, seed) for n, s in both.items()}
    rows = {n: s.rows[places[n]] for n, s in both.items()}
    net = sites.net
    stages = backbone_stages(net)
    summaries: dict[str, dict[str, Floats]] = {}
    if stages:
        images = {n: replace(s.domain, trunk=None) for n, s in both.items()}
        summaries = backbone_summaries(net, stages, images, rows, sites.device)
    summaries["features"] = {n: s.features[places[n]] for n, s in both.items()}
    summaries["logits"] = {n: s.logits[places[n]] for n, s in both.items()}
    found = stage_distances(summaries, {n: s.domain.groups[rows[n]] for n, s in both.items()}, seed)
    return {
        "shown": {n: len(chosen) for n, chosen in rows.items()},
        "layers": [*(stage.label for stage in stages), "features", "logits"],
        "proxy_a_distance": [_finite(a) for a, _ in found],
        "mmd2": [_finite(m) for _, m in found],
    }


def positions(site: Site, rows: Rows) -> Rows:
    """Return where rows of the domain are among the site's rows, which are sorted."""
    return np.searchsorted(site.rows, rows)


def _features(domain: Domain, rows: Rows) -> Floats:
    assert domain.trunk is not None
    found = domain.trunk.numpy()[rows].astype(np.float64)
    if not np.isfinite(found).all():
        raise DataError(
            "the backbone's features are not finite: its weights do not fit these images, or are"
            " damaged. Try another --model or --pretrained-path."
        )
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
