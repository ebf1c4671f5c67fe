"""What guessing would score, from the items and classes that were really tested.

Who guesses knows which classes are tested, and draws one of them (for top-k: k of them) at random;
a class without a test item is none to be guessed. For retrieval the neighbours are drawn at random
from the gallery, without replacement: two balanced classes are found within five neighbours in 97%
of the cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_TOP_K = re.compile(r"top(\d+)(_|$)")


def classification_chances(labels: Tensor, metrics: Iterable[str]) -> dict[str, float]:
    """Returns the expected value of guessing, by metric, of a classification.

    Args:
        labels: (M,) true classes of the tested items, M >= 1.
        metrics: Names such as ``top1``, ``top5_k20`` and ``mean_class_accuracy``; others get none.
    """
    tested = len(labels.unique())
    chances = {}
    for name in metrics:
        if found := _TOP_K.match(name):
            chances[name] = min(1.0, int(found[1]) / tested)
        elif name == "mean_class_accuracy":
            chances[name] = 1 / tested
    return chances


def recall_chances(
    query_labels: Tensor, gallery_labels: Tensor, ks: Sequence[int]
) -> dict[str, float]:
    """Returns the expected ``R@k`` of neighbours drawn at random, the mean over the queries.

    Of a query whose class has m of the G gallery items it is 1 - C(G - m, k) / C(G, k).

    Args:
        query_labels: (Q,) classes of the queries, Q >= 1.
        gallery_labels: (G,) classes of the gallery.
        ks: Numbers of neighbours, each at most G.
    """
    size = len(gallery_labels)
    most = int(torch.cat([query_labels, gallery_labels]).max()) + 1
    of_class = torch.bincount(gallery_labels, minlength=most)
    asked = torch.bincount(query_labels, minlength=most)
    chances = {}
    for k in sorted(set(ks)):
        draws = math.comb(size, k)
        # Whole numbers of any length, divided once: exact to the last digit.
        hit = [1 - math.comb(size - count, k) / draws for count in of_class.tolist()]
        chances[f"R@{k}"] = math.fsum(
            number * share for number, share in zip(asked.tolist(), hit, strict=True)
        ) / len(query_labels)
    return chances
