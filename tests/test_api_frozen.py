"""Within a version of the plugin contract nothing is removed or changed, only added."""

from __future__ import annotations

import pytest

from api_surface import SNAPSHOT, surface
from daptkit.host.loading import SHIPPED
from daptkit.host.lookup import find_plugins, load_plugin
from daptkit.testing import MethodCase, NotApplicable

LOSSES = {
    "dann": {"domain"},
    "cdan": {"domain"},
    "coral": {"covariance", "mean"},
    "mmd": {"mmd"},
    "jmmd": {"joint_mmd"},
    "bbse": set(),
    "mcc": {"confusion"},
    "bnm": {"nuclear_norm"},
    "infomax": {"entropy", "diversity"},
    "afn": {"source_norm", "target_norm"},
    "bsp": {"source_spectrum", "target_spectrum"},
    "vat": {"consistency"},
    "mcd": {"heads", "discrepancy"},
}
"""Keys of each shipped method's losses; reports and users' scripts read them in metrics.jsonl."""


def test_the_contract_is_what_its_snapshot_says() -> None:
    """What is new is added to the snapshot: ``python tests/api_surface.py``."""
    frozen = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    now = surface()
    gone = sorted(set(frozen) - set(now))
    new = sorted(set(now) - set(frozen))
    assert not gone, (
        "removed or changed within one version of the contract:\n"
        + "\n".join(gone)
        + "\nInstead of them there are:\n"
        + "\n".join(new)
    )
    assert not new, f"add these lines to {SNAPSHOT.name}:\n" + "\n".join(new)


def test_the_snapshot_sees_what_a_plugin_uses() -> None:
    lines = set(surface())
    assert {
        "plugin.API_VERSION = 1",
        "plugin.NEEDS holds 'source'",
        "plugin.MethodSpec.name: str",
        "plugin.MethodSpec.trains: str = 'all'",
        "host.hookspecs.daptkit_event(event: Event) -> None",
        "class method.Method(Module)",
        "method.Method.layers: tuple[str, ...] = ('features',)",
        "method.StepContext.progress: float",
        "method.FitContext.note(self, text: str) -> None",
        "nn.ramp(progress: float, gamma: float = 10.0) -> float",
        "testing.make_task(num_classes: int = 3, features: int = 6) -> TaskInfo",
    } <= lines


@pytest.mark.parametrize("name", SHIPPED)
def test_loss_keys_are_kept(name: str) -> None:
    (entry,) = find_plugins(name, "method")
    case = MethodCase(loaded=load_plugin(entry).loaded)  # type: ignore[arg-type]
    try:
        found = set(case.call(case.pair()).losses)
    except NotApplicable:
        found = set()
    assert found >= LOSSES.get(name, set()), "a loss was removed or renamed"
    assert name not in LOSSES or found <= LOSSES[name], "add the new loss to LOSSES"
