# Airflow with this provider.
FROM apache/airflow:3.3.2-python3.11

WORKDIR /opt/provider
COPY --chown=airflow:0 pyproject.toml README.md LICENSE ./
COPY --chown=airflow:0 airflow_hpc_provider airflow_hpc_provider
# The image's own version of Airflow, so that pip does not change it; the group is what the example DAGs draw with.
RUN pip install --no-cache-dir "apache-airflow[postgres]==${AIRFLOW_VERSION}" . --group examples

COPY --chown=airflow:0 .docker/start /opt/start
WORKDIR /opt/airflow
