"""Experiments: drivers, what they share, and programs to read."""

import importlib.abc
import os
import sys
from typing import Any

# LAPACK computes with a single thread. Drivers use a device per core, and the threads that OpenBLAS would add
# wait for each other: on a busy host 32 systems of 128 equations took 0.20 s of processors, and take 0.007.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Commands of 0.1 that moved; the old names go with the next release.
_MOVED = {
    "experiments.minimal_maml": "experiments.examples.minimal_maml",
    "experiments.own_inner_loop": "experiments.examples.own_inner_loop",
    "experiments.pod_check": "experiments.pod.check",
}


class _Moved(importlib.abc.MetaPathFinder):
    """Finds modules by their old names; it imports metajax, and with it JAX, for those alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in _MOVED:
            return None
        from metajax import deprecation

        return deprecation.RenamedModules(_MOVED).find_spec(name)


sys.meta_path.append(_Moved())
