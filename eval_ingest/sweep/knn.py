"""Weighted kNN on frozen embeddings: K and temperature are those of the existing OlmoEarth code."""

import torch
import torch.nn.functional as F

from eval_ingest.core.task import IGNORE_LABEL

K = 20
TEMPERATURE = 0.07

_BLOCK_VALUES = 1 << 24
"""Similarities made at a time."""


def knn_votes(
    train: torch.Tensor,
    labels: torch.Tensor,
    queries: torch.Tensor,
    num_classes: int,
    device: torch.device,
) -> torch.Tensor:
    """Votes (N, C), of 1 in all, of the K nearest by cosine similarity s, weighted exp(s / 0.07).

    Args:
        train: (M, D).
        labels: (M,) long; -1 doesn't vote.
        queries: (N, D).
        num_classes: classes.
        device: where the products are made.
    """
    valid = labels != IGNORE_LABEL
    known = F.normalize(train[valid].to(device), dim=1)
    votes_for = labels[valid].to(device)
    found = []
    for block in torch.split(queries, max(_BLOCK_VALUES // max(len(known), 1), 1)):
        similarity = F.normalize(block.to(device), dim=1) @ known.T
        nearest, places = similarity.topk(min(K, len(known)), dim=1)
        # Relative to the nearest: the same shares, and nothing overflows.
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        votes = weights.new_zeros(len(block), num_classes)
        votes.scatter_add_(1, votes_for[places], weights)
        found.append((votes / votes.sum(1, keepdim=True)).cpu())
    return torch.cat(found)
