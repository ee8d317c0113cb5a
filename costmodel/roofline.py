"""What the analytic models of CPUs and GPUs share: predicting, explaining, learning, files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, Self

from ..errors import ArtifactError, InputError
from .interface import Estimate, F, Sample
from .ranking import Prediction, explained
from .residual import FitTrees, Residual
from .trees import fit

FORMAT = "abqc-cost-model-2"


class Roofline(Generic[F]):
    """A cost model: an analytic prediction times a residual, where one was fitted.

    A subclass has a `machine` (its name is written into files), the class of its features and
    `estimate`. `origin` says where the residual comes from, `warning` why it is not the one that
    the user has.
    """

    features_class: ClassVar[type]
    residual: Residual | None
    origin: str = ""
    warning: str = ""

    @property
    def machine(self) -> str:
        """The name of the CPU or GPU that is described."""
        raise NotImplementedError

    @classmethod
    def of_machine(cls, name: str) -> Self:
        """The analytic model of the machine called `name`. Raises KeyError."""
        raise NotImplementedError

    def estimate(self, features: F) -> Estimate:
        """The analytic prediction and its parts. Raises CompileError for what is not described."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        """`analytic only`, or what the residual was fitted to."""
        if self.residual is None:
            return "analytic only"
        r = self.residual
        trained = f"analytic x residual ({r.samples} samples, {r.device}, {r.date})"
        return f"{trained}, {self.origin}" if self.origin else trained

    def predict(self, features: F) -> float:
        return self.predict_all([features])[0]

    def estimates(self, candidates: Sequence[F]) -> Sequence[Estimate]:
        """Of each."""
        return [self.estimate(f) for f in candidates]

    def predict_all(self, candidates: Sequence[F]) -> list[float]:
        return self._seconds(candidates, self.estimates(candidates))

    def _seconds(self, candidates: Sequence[F], estimates: Sequence[Estimate]) -> list[float]:
        seconds = [estimate.seconds for estimate in estimates]
        if self.residual is None:
            return seconds
        factors = self.residual.factors(candidates, estimates)
        return [s * float(factor) for s, factor in zip(seconds, factors, strict=True)]

    def rank(self, candidates: Sequence[F]) -> list[F]:
        seconds = self.predict_all(candidates)
        order = sorted(range(len(candidates)), key=seconds.__getitem__)
        return [candidates[i] for i in order]

    def predictions(self, candidates: Sequence[F]) -> list[Prediction]:
        estimates = list(self.estimates(candidates))
        seconds = self._seconds(candidates, estimates)
        predicted = [
            Prediction(label(f), s, e.bound, f.strategy)
            for f, s, e in zip(candidates, seconds, estimates, strict=True)
        ]
        return sorted(predicted, key=lambda prediction: prediction.seconds)

    def explain(self, candidates: Sequence[F]) -> str:
        return explained(self.predictions(candidates))

    def fit(self, samples: Sequence[Sample], fit_trees: FitTrees = fit) -> None:
        """Fit a residual to samples of one machine, in place of the one there was."""
        if not samples:
            raise InputError("there are no samples to fit the cost model to")
        if not all(isinstance(sample.features, self.features_class) for sample in samples):
            raise InputError(f"the samples are not of {self.machine}")
        estimates = [self.estimate(sample.features) for sample in samples]  # type: ignore[arg-type]
        self.residual = Residual.fit(samples, estimates, fit_trees)

    def save(self, path: Path, trained: Mapping[str, Any] | None = None) -> None:
        """Write a file whole or not at all; `trained` is for people, how it came to be."""
        data = {
            "format": FORMAT,
            "machine": self.machine,
            "trained": dict(trained or {}),
            "residual": self.residual.to_json() if self.residual else None,
        }
        new = path.with_name(f".{path.name}.{os.getpid()}")
        new.write_text(json.dumps(data))
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"its format is '{data['format']}', not '{FORMAT}'")
            model = cls.of_machine(data["machine"])
            if data["residual"] is not None:
                model.residual = Residual.from_json(data["residual"], cls.features_class)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} is no cost model: {error}", hint="`abqc tune` writes it anew"
            ) from error
        return model


def label(features: F) -> str:
    """A candidate's name: its strategy, and its schedule where it has one."""
    schedule = getattr(features, "schedule", "")
    return f"{features.strategy} {schedule}".strip()
