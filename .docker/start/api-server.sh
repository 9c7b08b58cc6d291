#!/usr/bin/env bash
# The API server brings the database up to date first; the other services wait until it is healthy.
set -euo pipefail

airflow db migrate

# Airflow's simple auth manager reads its users' passwords from a file and would invent one that is missing.
umask 077
python -c '
import json, os
with open(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"], "w") as file:
    json.dump({"admin": os.environ["AIRFLOW_ADMIN_PASSWORD"]}, file)
'
exec airflow api-server
