"""Rows of sweeps that nobody has run."""

from eval_ingest.sweep.results import Row


def score(name: str, version: str, encoder: str, value: float, finished_at: str) -> Row:
    """A row of a sweep's results."""
    return Row(
        key=f"{name}{version}{encoder}", dataset=name, dataset_version=version, task="segmentation",
        encoder=encoder, encoder_fingerprint="", weights="", probe="linear", split="test",
        label_fraction=1.0, seed=42, n_train=17, n_val=2, n_test=5, normalize="", method="",
        patch_size=4, bands={}, learning_rate=None, epoch=None, metric="mIoU",
        lower_is_better=False, val_score=None, test_score=value, ci_low=value - 0.1,
        ci_high=value + 0.1, metrics={}, per_class=[], confusion=None, notes=[], device="cpu",
        seconds=1.0, embed_seconds=1.0, finished_at=finished_at,
    )  # fmt: skip
