#!/usr/bin/env bash
# Print .env.example with a random value for every empty one:  bash .docker/new-env.sh > .env
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "$0")")")

while IFS= read -r line; do
  case $line in
    *_FERNET_KEY=) echo "$line$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')" ;;
    [A-Z]*=) echo "$line$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')" ;;
    *) echo "$line" ;;
  esac
done < "$root/.env.example"
