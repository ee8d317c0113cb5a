"""Pipelines of scikit-learn on its digits and iris data, through skl2onnx. Needs both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits, load_iris
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.svm import SVC, SVR

MODELS: dict[str, Any] = {
    "logistic": lambda: LogisticRegression(max_iter=1000),
    "linear": LinearRegression,
    "mlp_scaler": lambda: make_pipeline(
        StandardScaler(), MLPClassifier((32,), max_iter=100, random_state=0)
    ),
    "imputer_normalizer": lambda: make_pipeline(
        SimpleImputer(), MinMaxScaler(), Normalizer(), LogisticRegression(max_iter=1000)
    ),
    "forest": lambda: RandomForestClassifier(20, max_depth=8, random_state=0),
    "forest_regressor": lambda: RandomForestRegressor(10, max_depth=8, random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=10, random_state=0),
    "boosting_regressor": lambda: GradientBoostingRegressor(n_estimators=10, random_state=0),
    "svm": lambda: SVC(probability=False),
    "svm_regressor": SVR,
}
SMALL = ("boosting", "boosting_regressor", "svm", "svm_regressor", "linear")


def make(function: str, variant: str, path: Path) -> None:
    """Fit MODELS[function] and write it; with the variant `zipmap` as skl2onnx does by default."""
    x, y = (load_iris if function in SMALL else load_digits)(return_X_y=True)
    x = x.astype(np.float32)
    model = MODELS[function]().fit(x, y)
    classifier = hasattr(model, "predict_proba") or hasattr(model, "decision_function")
    options = {"zipmap": False} if classifier and variant != "zipmap" else None
    path.write_bytes(to_onnx(model, x[:1], options=options).SerializeToString())
