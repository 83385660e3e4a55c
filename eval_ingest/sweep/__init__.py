"""Scores of frozen encoders on every registered dataset: embed once, probe, compare.

| module | has |
|---|---|
| suite.py | Suite: what is to be scored, checked before anything is loaded |
| run.py, evaluate.py | the two doors: many encoders, kept rows; a model that is being trained |
| scoring.py | one encoder on datasets: rows of scores |
| encoders/ | the Encoder protocol, encoders by name, and the two that come along |
| embed.py, splits.py, rows.py | frozen embeddings, made once and kept in the cache |
| probes.py, knn.py, trainer.py | kNN, and linear probes with all learning rates trained at once |
| metrics.py, ranking.py | scores, per-class values and bootstrap intervals |
| results.py | rows on disk, Parquet and JSON tables, the leaderboard |
| plots.py | PNG pictures |
| tasks.py | the registry as tasks of OlmoEarth's own trainer |
"""
