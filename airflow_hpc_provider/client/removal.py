"""What may be removed or moved away, and what never: decided by names alone, before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .choices import is_glob
from .errors import InvalidInputError
from .paths import is_inside, remote_path
from .systems import System

__all__ = ["Guard", "split_removal"]


@dataclass(frozen=True, slots=True)
class Guard:
    """Places that stay, with all that is above them.

    :param places: what each is, by its absolute path
    """

    places: Mapping[str, str]

    @classmethod
    def of(cls, system: System, user: str, working_dir: str | None = None) -> Guard:
        """The places of one user on one system.

        :param system: its file systems' mount points stay
        :param user: Unix name; the directory of this name on each file system stays
        :param working_dir: the connection's own working directory, which stays too
        """
        places = {"/": "the root directory"}
        if working_dir:
            places[remote_path(working_dir, "working_dir")] = "the connection's working directory"
        for mounted in system.file_systems:
            mount = remote_path(mounted.path, "file system")
            places[mount] = f"the mount point of a file system ({mounted.kind or 'of unknown kind'})"
            what = "home directory" if mounted.default_directory or mounted.kind == "users" else "directory"
            places[f"{mount.rstrip('/')}/{user}"] = f"the {what} of {user} on {mount}"
        return cls(places)

    def check(self, path: str, field: str = "path", doing: str = "removed") -> str:
        """A path that is none of the places, nor above one.

        :param path: absolute path
        :param field: name of the parameter, for the error text
        :param doing: what would be done with it, for the error text
        :return: the path, normalised
        :raises InvalidInputError: it stays
        """
        path = remote_path(path, field)
        if what := self.places.get(path):
            raise InvalidInputError(field, f"{path} is {what}: it is not {doing}.")
        for place, what in self.places.items():
            if is_inside(place, path):
                raise InvalidInputError(field, f"{path} is above {place}, {what}: it is not {doing}.")
        return path


def split_removal(path: str, *, allow_glob: bool, field: str = "path") -> tuple[str, str | None]:
    """A path to remove, or a directory and the pattern of the names in it.

    :param path: absolute path; wildcards (``*``, ``?``, ``[``) in its last name only
    :param allow_glob: wildcards are meant as such
    :param field: name of the parameter, for the error text
    :return: the normalised path and None, or the normalised directory and the pattern
    :raises InvalidInputError: there are wildcards that are not allowed, or in a directory's name
    """
    path = remote_path(path, field)
    if not is_glob(path):
        return path, None
    if not allow_glob:
        raise InvalidInputError(
            field,
            f"{path} holds a wildcard; allow_glob=True lets it stand for all names that match. "
            "A name that really has such a character is written with brackets: 'a[*]b'.",
        )
    directory, _, pattern = path.rpartition("/")
    if is_glob(directory):
        raise InvalidInputError(field, f"{path} has a wildcard in a directory; only the last name may.")
    return directory or "/", pattern
