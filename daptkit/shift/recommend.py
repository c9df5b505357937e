"""Which installed methods fit a diagnosis: chosen by what they say of themselves, not by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from daptkit.shift.diagnosis import ShiftDiagnosis

NO_METHOD = "none"
PRIOR_ROLES = frozenset({"class_weights", "target_prior"})


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Methods for ``-m`` and why.

    Args:
        methods: the argument of ``-m``, such as ``"a+b"``, or ``"none"``.
        reason: one or two sentences.
        alternatives: further arguments that fit as well.
    """

    methods: str
    reason: str
    alternatives: tuple[str, ...] = ()

    def to_json(self) -> dict[str, str | list[str]]:
        """Return plain values."""
        return {
            "methods": self.methods,
            "reason": self.reason,
            "alternatives": list(self.alternatives),
        }


def recommend_methods(
    diagnosis: ShiftDiagnosis,
    addresses: Mapping[str, frozenset[str]],
    roles: Mapping[str, frozenset[str]] | None = None,
    *,
    prefer: Sequence[str] = (),
    risks: Mapping[str, frozenset[str]] | None = None,
) -> Recommendation:
    """Return the methods to adapt with.

    ``none`` without a shift, and where it is unclear which one. Otherwise the smallest set of
    methods, of at most two, that addresses every kind found and in which no role has two owners.
    Label shift asks for an owner of ``class_weights`` or ``target_prior``; beside a method that
    aligns, for one of ``class_weights``, since alignment under unequal class frequencies does harm.
    Of sets of equal size those that address least beyond what was found come first, then those of
    ``prefer``, then those with the fewest declared risks, since harm by adapting shows in no
    unlabelled figure for certain; what is still equal is in the order of the alphabet. The others
    are named as alternatives, in the same order.

    Args:
        diagnosis: of the two sites; labels of the target play no part in it.
        addresses: name -> kinds of shift, of :class:`daptkit.plugin.MethodSpec`.
        roles: name -> roles, of the same; none where ``None``.
        prefer: names that come first among equals, the best first.
        risks: name -> risks, of the same; none where ``None``.

    Reference: Zhao et al. 2019, arXiv:1901.09453 (alignment under label shift); Tachet des Combes
    et al. 2020, arXiv:2003.04475 (weighted alignment).
    """
    kind = diagnosis.kind
    if kind == "none":
        return Recommendation(
            methods=NO_METHOD, reason="No shift was found, so there is nothing to correct."
        )
    if kind == "unclear":
        return Recommendation(
            methods=NO_METHOD,
            reason="It is not clear which shift there is, so no method can be chosen for it. "
            + diagnosis.reasons[-1],
        )
    wanted = {"covariate", "label"} if kind == "both" else {kind}
    fitting = _fitting(wanted, addresses, roles or {}, list(prefer), risks or {})
    named = " and ".join(f"{k} shift" for k in sorted(wanted))
    if not fitting:
        lacking = sorted(wanted - {k for kinds in addresses.values() for k in kinds})
        what = f"{' or '.join(lacking)} shift" if lacking else f"{named} together"
        return Recommendation(
            methods=NO_METHOD,
            reason=f"{named.capitalize()} found, but no installed method addresses {what}.",
        )
    first, *others = fitting
    parts = [f"{name} addresses {_kinds(addresses[name] & wanted)}" for name in first]
    reason = f"{named.capitalize()} found: {', '.join(parts)}."
    estimate = diagnosis.target_prior
    if "label" in wanted and estimate is not None and not estimate.trusted:
        reason += " The estimate of the class frequencies is not trusted: see the caveats."
    if others:
        reason += " Others fit as well, those with fewer declared risks named first; compare them."
    return Recommendation(
        methods="+".join(first), reason=reason, alternatives=tuple("+".join(o) for o in others)
    )


def _fitting(
    wanted: set[str],
    addresses: Mapping[str, frozenset[str]],
    roles: Mapping[str, frozenset[str]],
    prefer: list[str],
    risks: Mapping[str, frozenset[str]],
) -> list[tuple[str, ...]]:
    """Return the sets of methods that fit, of the smallest size, the best first."""
    useful = [n for n in sorted(addresses) if addresses[n] & wanted]
    for size in (1, 2):
        sets = [s for s in combinations(useful, size) if _fits(s, wanted, addresses, roles)]
        if sets:
            break

    def rank(names: tuple[str, ...]) -> tuple[int, list[int], int, tuple[str, ...]]:
        beyond = len({k for n in names for k in addresses[n]} - wanted)
        places = sorted(prefer.index(n) if n in prefer else len(prefer) for n in names)
        declared = sum(len(risks.get(n, frozenset())) for n in names)
        return beyond, places, declared, names

    # Methods that own no prior come first, as in aligner+corrector.
    return [
        tuple(sorted(s, key=lambda n: (bool(roles.get(n, frozenset()) & PRIOR_ROLES), n)))
        for s in sorted(sets, key=rank)
    ]


def _fits(
    names: tuple[str, ...],
    wanted: set[str],
    addresses: Mapping[str, frozenset[str]],
    roles: Mapping[str, frozenset[str]],
) -> bool:
    owned = [role for name in names for role in roles.get(name, frozenset())]
    if len(owned) != len(set(owned)):
        return False
    if not wanted <= {k for name in names for k in addresses[name]}:
        return False
    if "label" not in wanted:
        return True
    needed = {"class_weights"} if "covariate" in wanted else PRIOR_ROLES
    return any("label" in addresses[n] and roles.get(n, frozenset()) & needed for n in names)


def _kinds(kinds: frozenset[str]) -> str:
    return " and ".join(f"{k} shift" for k in sorted(kinds))
