"""Calibration of probabilities: the expected calibration error, and a temperature that lowers it.

Guo et al. 2017 (On Calibration of Modern Neural Networks): logits are divided by a temperature
that is fitted on held-out data. The best label stays the same.
"""

import numpy as np

_BINS = 15
_LOW, _HIGH = 0.05, 20.0


def probabilities(logits_NC: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """Softmax of logits over a temperature: probabilities_NC."""
    scaled_NC = logits_NC.astype(np.float64) / temperature
    scaled_NC -= scaled_NC.max(axis=1, keepdims=True)
    exponentials_NC = np.exp(scaled_NC)
    found: np.ndarray = exponentials_NC / exponentials_NC.sum(axis=1, keepdims=True)
    return found


def calibration_error(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The mean distance of confidence and accuracy, over 15 bins of confidence.

    Example:
        >>> sure = np.array([[1.0, 0.0], [1.0, 0.0]])
        >>> calibration_error(sure, np.array([0, 1]))
        0.5
    """
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    error = 0.0
    for index in range(_BINS):
        inside_N = bin_N == index
        if inside_N.any():
            distance = abs(confidence_N[inside_N].mean() - right_N[inside_N].mean())
            error += float(inside_N.mean() * distance)
    return error


def fitted_temperature(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature under which the labels are likeliest, between 0.05 and 20."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        found_NC = probabilities(logits_NC, temperature=float(np.exp(log_temperature)))
        likelihood_N = found_NC[np.arange(len(labels_N)), labels_N]
        return float(-np.log(np.maximum(likelihood_N, 1e-12)).mean())

    bounds = (np.log(_LOW), np.log(_HIGH))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
