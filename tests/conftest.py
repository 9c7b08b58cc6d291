"""For all tests. Its being here also puts ``tests`` on the import path: ``from loopback import serve``."""

from hypothesis import settings

# The same examples everywhere, and no failure because the machine is busy.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
