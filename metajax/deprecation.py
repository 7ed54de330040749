"""Old names that stay importable for one release; each use warns and names the new one."""

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warns that a name is deprecated.

    Args:
      old: Old name, as users write it.
      new: New name.
      stacklevel: Number of frames up to the user's line.

    Example:
      >>> import warnings
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     warn("metajax.reading", "metajax.recurrent_learner")
      >>> str(caught[0].message).split(";")[0]
      'metajax.reading is now metajax.recurrent_learner'
    """
    message = f"{old} is now {new}; the old name goes with the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_attributes(
    package: str, table: Mapping[str, str], *, stacklevel: int = 3
) -> Callable[[str], Any]:
    """Makes a module's `__getattr__` that finds old names.

    Args:
      package: Name of the module.
      table: Full new name, such as "metajax.learners.maml", by old attribute.
      stacklevel: Frames from the warning to the user's line: 3 if the result is the module's
        `__getattr__` itself, 4 if that calls it.

    Returns:
      A function from an attribute's name to its value.

    Raises:
      AttributeError: If the function is called with an unknown name.
    """

    def find(name: str) -> Any:
        """Finds an attribute by its old name, and warns."""
        if name not in table:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, _, attribute = table[name].rpartition(".")
        warn(f"{package}.{name}", table[name], stacklevel=stacklevel)
        return getattr(importlib.import_module(home), attribute)

    return find


def renamed_arguments(**table: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function that still takes old keyword arguments.

    Args:
      **table: New keyword by old keyword.

    Returns:
      A decorator; a call with an old keyword warns and passes the value under the new one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in table.keys() & kwargs.keys():
                name = function.__name__
                if table[old] in kwargs:
                    raise TypeError(f"{name} got both {old} and {table[old]}; leave out {old}.")
                warn(f"{name}({old}=...)", f"{name}({table[old]}=...)")
                kwargs[table[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


class _Alias(importlib.machinery.SourceFileLoader):
    """Loads the module of a new name under an old name too; it runs once and is one object."""

    def __init__(self, old: str, new: str, path: str, attributes: Mapping[str, str]):
        super().__init__(old, path)
        self._new, self._attributes = new, attributes

    def create_module(self, spec: Any) -> Any:
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def get_code(self, fullname: str) -> types.CodeType:
        """Compiles a program for `python -m OLD`: under its old name a module could not import relatively."""
        program = (
            f"import runpy\nrunpy.run_module({self._new!r}, run_name='__main__', alter_sys=True)"
        )
        return compile(program, self.path, "exec")

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self._spec  # the import system has just replaced it with the old name's
        for old, new in self._attributes.items():
            home, _, attribute = new.rpartition(".")
            setattr(module, old, getattr(importlib.import_module(home), attribute))


class _Guarded(types.ModuleType):
    """A package whose exported functions are not replaced by old modules of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, types.ModuleType) and name in self.__all__):
            super().__setattr__(name, value)


class RenamedModules(importlib.abc.MetaPathFinder):
    """Finds modules by their old names, also for `python -m`.

    Args:
      table: Full new name by full old name.
      attributes: Full new name by old attribute of each old module, where attributes were renamed.
    """

    def __init__(
        self,
        table: Mapping[str, str],
        attributes: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
    ):
        self._table, self._attributes = table, attributes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._table:
            return None
        new = self._table[name]
        warn(name, new)
        found = importlib.util.find_spec(new)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(f"{name} is now {new}, which is not installed.", name=new)
        parent = sys.modules.get(name.rpartition(".")[0])
        if parent is not None and name.rpartition(".")[2] in getattr(parent, "__all__", ()):
            parent.__class__ = _Guarded
        attributes = self._attributes.get(name, {})
        return importlib.util.spec_from_file_location(
            name, found.origin, loader=_Alias(name, new, found.origin, attributes)
        )


def renamed_modules(
    table: Mapping[str, str],
    attributes: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
) -> None:
    """Makes modules importable by their old names.

    Args:
      table: Full new name by full old name.
      attributes: Full new name by old attribute of each old module, where attributes were renamed.
    """
    sys.meta_path.append(RenamedModules(table, attributes))
