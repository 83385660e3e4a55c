"""How fast eval_ingest is, measured beside the tools it stands next to."""
