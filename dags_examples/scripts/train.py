"""Trains one logistic regression of a sweep; needs nothing but Python's standard library.

The element of the job array chooses the hyper-parameters. Reads ``breast_cancer.csv``, writes
``metrics-<index>.json`` and ``model-<index>.json``.
"""

import csv
import json
import math
import os
import random
import sys
import time

RATES = (0.003, 0.03, 0.3)
PENALTIES = (0.0, 0.01, 0.1)
EPOCHS = 100


def read(path):
    """Rows of features, scaled to mean 0 and deviation 1, and labels, in a reproducible random order."""
    with open(path, newline="") as stream:
        rows = [[float(value) for value in row] for row in csv.reader(stream) if row and not row[0].isalpha()]
    random.Random(1).shuffle(rows)
    features, labels = [row[:-1] for row in rows], [int(row[-1]) for row in rows]
    for column in range(len(features[0])):
        values = [row[column] for row in features]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)) or 1.0
        for row in features:
            row[column] = (row[column] - mean) / deviation
    return features, labels


def predict(weights, row):
    """Probability of label 1."""
    score = weights[0] + sum(weight * value for weight, value in zip(weights[1:], row))
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def loss_and_accuracy(weights, features, labels):
    """Mean log-loss and share of right answers."""
    loss, right = 0.0, 0
    for row, label in zip(features, labels):
        chance = predict(weights, row)
        loss -= math.log(max(1e-12, chance if label else 1 - chance))
        right += (chance > 0.5) == bool(label)
    return loss / len(labels), right / len(labels)


def main():
    """Train and write."""
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    rate, penalty = RATES[index // len(PENALTIES)], PENALTIES[index % len(PENALTIES)]
    features, labels = read("breast_cancer.csv")
    cut = len(features) * 4 // 5
    weights = [0.0] * (len(features[0]) + 1)
    losses, begun = [], time.time()
    for epoch in range(EPOCHS):
        for row, label in zip(features[:cut], labels[:cut]):
            error = predict(weights, row) - label
            weights[0] -= rate * error
            for column, value in enumerate(row, start=1):
                weights[column] -= rate * (error * value + penalty * weights[column])
        loss, accuracy = loss_and_accuracy(weights, features[cut:], labels[cut:])
        losses.append(loss)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3d}: loss {loss:.4f}, accuracy {accuracy:.4f}", flush=True)
    metrics = {
        "index": index,
        "rate": rate,
        "penalty": penalty,
        "loss": losses[-1],
        "accuracy": accuracy,
        "losses": losses,
        "seconds": time.time() - begun,
        "python": sys.version.split()[0],
    }
    for name, content in (("metrics", metrics), ("model", {"index": index, "weights": weights})):
        with open(f"{name}-{index}.json", "w") as stream:
            json.dump(content, stream)


main()
