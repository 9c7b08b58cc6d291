"""Apache Airflow provider for supercomputers behind a web gateway."""

__all__ = ["__version__"]

__version__ = "0.1.0"
