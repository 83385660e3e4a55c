"""What training code imports: EvalDataset, normalisation, collate. Neither Dagster nor rslearn."""

from eval_ingest.loading.collate import collate
from eval_ingest.loading.dataset import EvalDataset

__all__ = ["EvalDataset", "collate"]
