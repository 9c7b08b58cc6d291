#!/usr/bin/env bash
# TLS for everything that secrets travel to: the provider talks plain HTTP to its own machine only.
set -euo pipefail
ca=${FRONT_CA:-/ca}
# Where it listens; unset: everywhere. Its container publishes no port.
at=${FRONT_ADDRESS:+$FRONT_ADDRESS:}

# A throw-away authority at each start; its key is gone before anything listens.
umask 077
keys=$(mktemp -d)
openssl req -x509 -newkey rsa:3072 -nodes -days 365 -subj "/CN=airflow-hpc-provider demo" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
  -keyout "$keys/ca.key" -out "$keys/ca.crt" 2> /dev/null
openssl req -newkey rsa:3072 -nodes -subj "/CN=front" -keyout "$keys/front.key" -out "$keys/front.csr" 2> /dev/null
openssl x509 -req -in "$keys/front.csr" -CA "$keys/ca.crt" -CAkey "$keys/ca.key" -CAcreateserial -days 365 \
  -extfile <(printf 'subjectAltName=DNS:front,DNS:localhost\nbasicConstraints=CA:FALSE\n') \
  -out "$keys/front.crt" 2> /dev/null
rm "$keys/ca.key"
install -m 644 "$keys/ca.crt" "$ca/ca.crt"

# delay: names are looked up when somebody connects, so that a profile that is off does no harm.
cat > "$keys/stunnel.conf" <<CONF
foreground = yes
syslog = no
pid =
cert = $keys/front.crt
key = $keys/front.key
delay = yes

[gateway]
accept = ${at}8443
connect = ${GATEWAY:-gateway:8000}

[firecrest]
accept = ${at}8444
connect = ${FIRECREST:-firecrest:5000}

[firecrest-token]
accept = ${at}8445
connect = ${FIRECREST_TOKEN:-keycloak:8080}

[firecrest-storage]
accept = ${at}9444
connect = ${FIRECREST_STORAGE:-minio:9000}
CONF
exec stunnel4 "$keys/stunnel.conf"
