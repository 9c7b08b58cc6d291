"""FirecREST v2 on one machine, for demos and tests.

    with Gateway() as gateway:
        os.environ["AIRFLOW_CONN_HPC_DEFAULT"] = json.dumps(gateway.connection())

It imports nothing of the rest of the package: client and gateway are two independent readings of one
contract. It is no production gateway: everybody who has its secret runs commands as its user.
"""

from .faults import Entry, Fault, Faults, RequestLog
from .gateway import Gateway

__all__ = ["Entry", "Fault", "Faults", "Gateway", "RequestLog"]
