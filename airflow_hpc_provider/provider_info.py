"""What Airflow shows about this provider. Plain data: Airflow reads it at the start of every command."""

from typing import Any

__all__ = ["get_provider_info"]

_NAME = "HPC (FirecREST)"


def get_provider_info() -> dict[str, Any]:
    """Entry point `apache_airflow_provider`."""
    return {
        "package-name": "airflow-hpc-provider",
        "name": _NAME,
        "description": "Run jobs and move files at supercomputing centres behind the FirecREST gateway.",
        "integrations": [
            {
                "integration-name": _NAME,
                "external-doc-url": "https://eth-cscs.github.io/firecrest-v2/",
                "tags": ["service"],
            },
        ],
        "hooks": _modules("hooks", "hpc"),
        "operators": _modules("operators", "jobs", "files", "directories"),
        "sensors": _modules("sensors", "jobs", "files", "systems"),
        "triggers": _modules("triggers", "jobs", "files", "systems"),
        "filesystems": ["airflow_hpc_provider.object_storage"],
        "asset-uris": [
            {
                "schemes": ["hpc"],
                "handler": "airflow_hpc_provider.assets.sanitize_uri",
                "factory": "airflow_hpc_provider.assets.create_asset",
                "to_openlineage_converter": "airflow_hpc_provider.assets.convert_asset_to_openlineage",
            },
        ],
        "extra-links": ["airflow_hpc_provider.links.HpcJobLink"],
        "connection-types": [
            {
                "connection-type": "firecrest",
                "hook-class-name": "airflow_hpc_provider.hooks.hpc.HpcHook",
                "hook-name": "FirecREST (HPC gateway)",
                "ui-field-behaviour": {
                    # Port stays: without one, the Test button of Airflow 3.3.2 answers 400.
                    "hidden-fields": ["schema"],
                    "relabeling": {"host": "Gateway URL", "login": "Client ID", "password": "Client secret"},
                    "placeholders": {
                        "host": "https://api.example.org/firecrest/v2",
                        "port": "443",
                        "login": "client id registered with the centre's identity provider",
                        "password": "client secret, or the PEM private key for private_key_jwt",
                    },
                },
                "conn-fields": _extra_fields(),
            },
        ],
    }


def _modules(kind: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"airflow_hpc_provider.{kind}.{name}" for name in names]
    return [{"integration-name": _NAME, "python-modules": modules}]


def _extra_fields() -> dict[str, Any]:
    """Fields kept in the extra. Airflow drops their placeholders, so the description holds the hint."""
    return {
        "token_url": {
            "label": "Token URL",
            "description": "Token endpoint of the centre's identity provider, such as "
            "https://auth.example.org/realms/hpc/protocol/openid-connect/token",
            "schema": _nullable("string"),
        },
        "scope": {
            "label": "Scope",
            "description": "OAuth2 scopes to ask for, parted by blanks, such as: openid firecrest",
            "schema": _nullable("string"),
        },
        "token_auth_method": {
            "label": "Token authentication",
            "description": "How the client proves itself to the token endpoint, such as client_secret_post "
            "(the default); with private_key_jwt the client secret above is the PEM private key",
            # No default: of a field with such a name the form would show, and store, Airflow's mask of it.
            "schema": _nullable(
                "string", enum=["client_secret_post", "client_secret_basic", "private_key_jwt"]
            ),
        },
        "access_token": {
            "label": "Access token",
            "description": "A ready token to use instead of client id and secret, such as eyJhbGciOi...; "
            "it is not renewed",
            "schema": _nullable("string", format="password"),
        },
        "system": {
            "label": "System",
            "description": "Default system for tasks that name none, such as daint",
            "schema": _nullable("string"),
        },
        "account": {
            "label": "Account",
            "description": "Default account (project) that jobs are charged to, such as csstaff",
            "schema": _nullable("string"),
        },
        "working_dir": {
            "label": "Working directory",
            "description": "Default directory on the system for jobs and relative paths, such as /scratch/me",
            "schema": _nullable("string"),
        },
        "ca_bundle": {
            "label": "CA bundle",
            "description": "PEM file on Airflow's machines: the authority behind the gateway's certificate, "
            "such as /etc/ssl/centre-ca.pem",
            "schema": _nullable("string"),
        },
        "ui_url": {
            "label": "Web interface",
            "description": "The centre's FirecREST UI, such as https://my.example.org, or the pattern of its "
            "job pages, such as https://my.example.org/{system}/jobs/{job_id}; tasks link to it",
            "schema": _nullable("string"),
        },
        "timeout": {
            "label": "Timeout (seconds)",
            "description": "How long one request may wait for an answer, such as 30",
            "schema": _nullable("number", minimum=1, default=30),
        },
        "max_requests_per_second": {
            "label": "Requests per second",
            "description": "Limit for one process's requests to this gateway, such as 5; empty is no limit",
            "schema": _nullable("number", minimum=0.1),
        },
    }


def _nullable(kind: str, **more: Any) -> dict[str, Any]:
    """Schema of a field that may be left out: the form marks one that cannot be null as required."""
    return {"type": [kind, "null"], **more}
