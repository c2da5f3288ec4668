"""Probes: what a straight line, or a small multilayer perceptron, can read from a word's vector.

Shapes: P probes trained at once, S sets of inputs, N items, M training items, F features, K ratings, B batch,
C classes or ratings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from otherside.probing.tasks import Mlp

EPOCHS = 50  # the paper names none; see docs/probing.md
NOISE = 2.0**-8  # bfloat16's rounding


def linear_probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """What logistic regression (classes) or linear regression (ratings), on standardised features, predicts for `test`.

    Args:
        train: (M, F).
        targets: (M,) classes or (M, K) ratings.
        test: (N, F).

    Returns:
        (N,) classes or (N, K) ratings.
    """
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from threadpoolctl import threadpool_limits

    train, test = train.astype(np.float64), test.astype(np.float64)  # in float32 linear regression breaks down
    x, z = standardised(train, train), standardised(train, test)
    with threadpool_limits(1):  # so small a problem takes 0.05 s on one thread, and seconds on threads that wait
        if targets.ndim == 2:
            return LinearRegression().fit(x, targets).predict(z)
        return LogisticRegression(max_iter=1000).fit(x, targets).predict(z)


def standardised(train: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """`vectors` (N, F) with the mean and spread of `train` (M, F) taken out.

    A feature of a vector that hardly moves holds rounding noise, from which batches, and with them the length of a
    sentence, could be told; divided by its spread it would be blown up to a signal. It becomes 0.
    """
    mean, spread = train.mean(0), train.std(0)
    if train.shape[1] > 1:
        spread = np.where(spread < NOISE * np.maximum(np.abs(mean), np.abs(train).mean()), np.inf, spread)
    return (vectors - mean) / np.where(spread == 0, np.inf, spread)


@dataclass(frozen=True)
class Run:
    """One MLP to train.

    Args:
        inputs: (N, F) features of all items; the same array in several runs is kept once.
        targets: (N,) classes or (N, K) ratings.
        train: numbers of the training items.
        test: numbers of the items to predict.
        seed: of the weights at the start and the order of the items.
    """

    inputs: np.ndarray
    targets: np.ndarray
    train: np.ndarray
    test: np.ndarray
    seed: int


def mlp_probes(runs: Sequence[Run], mlp: Mlp, epochs: int = EPOCHS, device: str = "cpu") -> list[np.ndarray]:
    """What each run's MLP predicts for its test items; all runs are trained side by side, each as if alone.

    ReLU, Adam, cross-entropy or squared error, standardised features, torch's initial weights. The runs' inputs are of
    one shape, and so are their training sets.

    Returns:
        (n,) classes or (n, K) ratings per run.
    """
    inputs_SNF, which_P = _inputs(runs, device)
    targets_PN = torch.stack([torch.tensor(run.targets) for run in runs]).to(device)
    if regression := targets_PN.ndim == 3:
        targets_PN = targets_PN.float()
    outputs = targets_PN.shape[2] if regression else int(targets_PN.max()) + 1
    generators = [torch.Generator().manual_seed(run.seed) for run in runs]
    parameters = _initial([inputs_SNF.shape[2], *mlp.hidden, outputs], generators, device)
    optimizer = torch.optim.Adam(parameters, lr=mlp.learning_rate, fused=True)
    places_P1, which_P1 = torch.arange(len(runs), device=device)[:, None], which_P[:, None]
    for batch_PB in _batches(runs, generators, mlp.batch_size, epochs):
        batch_PB = batch_PB.to(device)
        found_PBC = _forward(parameters, inputs_SNF[which_P1, batch_PB])
        loss = _loss(found_PBC, targets_PN[places_P1, batch_PB], regression)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    predictions = []
    for i, run in enumerate(runs):
        with torch.no_grad():
            own = [parameter[i : i + 1] for parameter in parameters]
            found_nC = _forward(own, inputs_SNF[which_P[i], torch.tensor(run.test)][None])[0]
        predictions.append((found_nC if regression else found_nC.argmax(1)).cpu().numpy())
    return predictions


def _inputs(runs: Sequence[Run], device: str) -> tuple[Tensor, Tensor]:
    """(S, N, F) standardised inputs, equal ones once, and (P,) which of them each run reads."""
    places: dict[tuple[int, bytes], int] = {}
    inputs: list[Tensor] = []
    which: list[int] = []
    for run in runs:
        key = (id(run.inputs), run.train.tobytes())
        if key not in places:
            places[key] = len(inputs)
            inputs.append(torch.tensor(standardised(run.inputs[run.train], run.inputs), dtype=torch.float32))
        which.append(places[key])
    return torch.stack(inputs).to(device), torch.tensor(which, device=device)


def _initial(sizes: Sequence[int], generators: Sequence[torch.Generator], device: str) -> list[Tensor]:
    """Weights (P, in, out) and biases (P, 1, out) of each layer, uniform in ± 1 / sqrt(in) as torch's `Linear`."""
    parameters = []
    for fan_in, fan_out in pairwise(sizes):
        for rows in (fan_in, 1):
            drawn = torch.stack([torch.rand(rows, fan_out, generator=g) for g in generators])
            parameters.append(((2 * drawn - 1) / math.sqrt(fan_in)).to(device).requires_grad_())
    return parameters


def _batches(runs: Sequence[Run], generators: Sequence[torch.Generator], size: int, epochs: int) -> Iterator[Tensor]:
    """(P, B) item numbers: each run's training set in an order of its own, epoch by epoch."""
    train = [torch.tensor(run.train) for run in runs]
    for _ in range(epochs):
        order = [items[torch.randperm(len(items), generator=g)] for items, g in zip(train, generators, strict=True)]
        yield from torch.stack(order).split(size, dim=1)


def _forward(parameters: Sequence[Tensor], x_PBF: Tensor) -> Tensor:
    weights, biases = parameters[::2], parameters[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x_PBF = torch.baddbmm(bias, x_PBF, weight).relu()
    return torch.baddbmm(biases[-1], x_PBF, weights[-1])


def _loss(found_PBC: Tensor, wanted_PB: Tensor, regression: bool) -> Tensor:
    """Each probe's mean over its batch, summed over probes: none touches another's gradient."""
    if regression:
        return (found_PBC - wanted_PB).square().mean((1, 2)).sum()
    entropy = nn.functional.cross_entropy(found_PBC.flatten(0, 1), wanted_PB.flatten(), reduction="sum")
    return entropy / wanted_PB.shape[1]
