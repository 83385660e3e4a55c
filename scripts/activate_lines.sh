#!/bin/sh
# Lets `. .venv/bin/activate` tell Dagster which module holds our definitions: `dagster asset
# materialize` reads neither pyproject.toml nor workspace.yaml, only this variable (or -m).
set -eu
activate="$1/bin/activate"
grep -q DAGSTER_MODULE_NAME "$activate" && exit 0
cat >> "$activate" <<'LINES'

# eval_ingest: where Dagster finds the definitions
DAGSTER_MODULE_NAME=eval_ingest.definitions
export DAGSTER_MODULE_NAME
LINES
