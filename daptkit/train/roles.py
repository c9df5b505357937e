"""Reading the roles that methods own: class weights and the target prior."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from daptkit.errors import PluginError
from daptkit.method import Method, TaskInfo
from daptkit.train.guard import plugin_guard


class Roles:
    """Who owns which role in a run.

    Args:
        owners: role to method name.
        methods: methods by name.
        packages: ``"package version"`` of each method, for messages.
        task: classes and source prior.
    """

    def __init__(
        self,
        owners: Mapping[str, str],
        methods: Mapping[str, Method],
        packages: Mapping[str, str],
        task: TaskInfo,
    ) -> None:
        self._owners = dict(owners)
        self._methods = dict(methods)
        self._packages = dict(packages)
        self._task = task

    def class_weights(self) -> Tensor:
        """Return the weights in force, (K,) on the CPU, mean 1 under the source prior.

        Ones when nobody owns the role or the owner returns ``None``.

        Raises:
            PluginError: the owner raises, or returns something else than K numbers of at least 0.
        """
        weights = self._ask("class_weights")
        if weights is None:
            return torch.ones(self._task.num_classes)
        mass = (self._task.source_prior.cpu().double() * weights).sum()
        if mass <= 0:
            raise self._fault("class_weights", "leaves no class of the source a positive weight")
        return (weights / mass).float()

    def target_prior(self) -> Tensor | None:
        """Return the target prior, (K,) on the CPU summing to 1, or ``None``.

        Raises:
            PluginError: the owner raises, or returns something else than K numbers of at least 0.
        """
        prior = self._ask("target_prior")
        if prior is None:
            return None
        if prior.sum() <= 0:
            raise self._fault("target_prior", "sums to 0")
        return (prior / prior.sum()).float()

    def target_prior_interval(self) -> tuple[Tensor, Tensor] | None:
        """Return the ends of the target prior's 95% interval, (K,) each on the CPU, or ``None``.

        Raises:
            PluginError: the owner raises, or returns something else than two times K numbers of
                at least 0.
        """
        if "target_prior" not in self._owners:
            return None
        name = self._owners["target_prior"]
        with plugin_guard(name, self._packages[name], "target_prior_interval()"):
            found = self._methods[name].target_prior_interval()
            if found is None:
                return None
            low, high = found
        return self._check("target_prior", low).float(), self._check("target_prior", high).float()

    def _ask(self, role: str) -> Tensor | None:
        if role not in self._owners:
            return None
        name = self._owners[role]
        with plugin_guard(name, self._packages[name], f"{role}()"):
            value = getattr(self._methods[name], role)()
        return None if value is None else self._check(role, value)

    def _check(self, role: str, value: object) -> Tensor:
        if not isinstance(value, Tensor):
            raise self._fault(role, f"is {type(value).__name__}, not a tensor")
        value = value.detach().cpu().double()
        if value.shape != (self._task.num_classes,):
            raise self._fault(role, f"has shape {tuple(value.shape)}, not one value a class")
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise self._fault(role, "holds a negative or non-finite value")
        return value

    def _fault(self, role: str, what: str) -> PluginError:
        name = self._owners[role]
        return PluginError(f"method '{name}' ({self._packages[name]}): its {role} {what}.")
