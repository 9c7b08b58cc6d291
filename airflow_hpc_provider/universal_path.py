"""``UPath`` for the scheme ``hpc``, which Airflow's ``ObjectStoragePath`` is built on."""

from __future__ import annotations

from typing import Self

from fsspec.registry import register_implementation
from upath import UPath
from upath.types import JoinablePathLike

from .filesystem import HpcFileSystem
from .locations import Location, locate

__all__ = ["HpcPath"]

# UPath looks here for the rules of paths, and does not load what is only named there.
register_implementation("hpc", HpcFileSystem, clobber=True)


class HpcPath(UPath):
    """A path on a system behind a gateway: ``hpc://conn_id@system/scratch/me/out.nc``."""

    __slots__ = ()

    def with_segments(self, *pathsegments: JoinablePathLike) -> Self:
        """Join; an absolute path starts anew, on the same system."""
        first, *others = pathsegments or ("",)
        joined = [first]
        for other in others:
            if isinstance(other, str) and other.startswith("/"):
                joined = [str(Location(locate(self.path).system, other))]
            else:
                joined.append(other)
        return super().with_segments(*joined)
