"""Scores of frozen encoders on every registered dataset: embed once, probe, compare.

| module | has |
|---|---|
| plan.py | SweepPlan: what is to be scored, checked before anything is loaded |
| run.py | run_sweep(): embeds and probes what is missing; call this from Dagster |
| encoders.py | the Encoder protocol, and encoders by name; pixels.py and olmoearth.py are two |
| embed.py | a split's frozen embeddings, made once and kept in the cache |
| probes.py | kNN, and linear probes with all learning rates trained at once |
| metrics.py | scores, per-class values and bootstrap intervals |
| results.py | rows on disk, Parquet and JSON tables, the leaderboard |
| plots.py | PNG pictures |
| command.py | the commands `sweep` and `leaderboard` |
"""
