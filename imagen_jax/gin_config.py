"""gin files and --gin.X=… flags in, one validated config instance out.

A gin file starts with `from __gin__ import dynamic_registration`, imports modules of this package and binds
their frozen dataclasses; its UPPER_SNAKE macros are what a user sets:

    from __gin__ import dynamic_registration
    from imagen_jax.train import config as train_config
    BATCH_SIZE = 64
    MODEL_DIR = %gin.REQUIRED
    train_config.TrainConfig.batch_size = %BATCH_SIZE

On the command line: `--gin.MODEL_DIR=runs/x`, `--gin.train_config.TrainConfig.batch_size=32`, or without the
module, `--gin.TrainConfig.batch_size=32`. No other file imports gin.
"""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import math
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import gin

from imagen_jax.checks import check_field, with_home
from imagen_jax.errors import UserError
from imagen_jax.files import shipped_root

T = TypeVar("T")

DYNAMIC = "from __gin__ import dynamic_registration"

# How a value begins that gin reads: a reference or macro, a container or quoted text.
_REFERENCES = ("@", "%")
_GIN_STARTS = (*_REFERENCES, "(", "[", "{", "'", '"')
_PYTHON_SPELLING = {"true": "True", "false": "False", "none": "None", "null": "None"}
# What gin's parser raises on damaged text, and besides what building raises on wrong names and values.
_PARSE_ERRORS = (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError)
_BUILD_ERRORS = (AttributeError, ModuleNotFoundError, NameError, OSError, RuntimeError, TypeError)
_IN_CLASS = re.compile(r"In call to configurable '(\w+)' \(<.*?>\)")
_UNKNOWN_PARAMETER = re.compile(r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'")


def split_gin_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits command-line words into gin bindings (from --gin.X=VALUE) and the rest, in order."""
    bindings, rest = [], []
    for word in arguments:
        if not word.startswith("--gin."):
            rest.append(word)
        elif "=" not in word:
            raise UserError(f"{word} has no value; write {word}=VALUE, in one word")
        else:
            name, value = word.removeprefix("--gin.").split("=", 1)
            bindings.append(f"{name.strip()} = {_quoted(name, value.strip())}")
    return bindings, rest


def load(
    target: type[T], gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> T:
    """The instance of `target` that gin files and bindings describe; see `load_with_operative`."""
    return load_with_operative(target, gin_files, bindings, search_paths)[0]


def load_with_operative(
    target: type[T],
    gin_files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str] = (),
    open_paths: str | None = None,
) -> tuple[T, str]:
    """The instance of `target` and the operative config: gin text that gives the same instance again.

    gin's global state is empty before and after, so several configs can be loaded in one process; a function
    that is to be called later cannot be bound (@f), only what is called now (@f()).

    Args:
      target: the config dataclass to build.
      gin_files: paths, looked for in the current directory, in search_paths, then in the repository or, of an
        installed package, in what came with it; a later file wins.
      bindings: lines "NAME = value" or "module.Class.parameter = value" that win over the files.
      search_paths: more folders in which gin files and their includes are looked for.
      open_paths: what macros named …_DIR and …_PATH are that were to be given and are not; None: an error.

    Raises:
      UserError: a file is missing or malformed, a name is unknown, a required macro has no value, or the
        config refuses a value.
    """
    with _clean_gin(search_paths):
        imports = _parse_files(gin_files)
        _parse_bindings(bindings, imports)
        if open_paths is not None:
            _parse_bindings([f"{name} = {open_paths!r}" for name in _open_path_macros()], imports)
        configured = _configurable(target)
        reached = _check_macros(gin.config._INVERSE_REGISTRY[target].selector)
        sources = " ".join([*(f"--gin_file={f}" for f in gin_files), *map(_flag, bindings)])
        with _as_user_error(sources or f"the defaults of {target.__name__}"):
            _check_types(reached)
            instance = configured()
        return instance, gin.operative_config_str(max_line_length=110)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A mention of @scope/module.Class() (macro False) or of %NAME (macro True) in gin text that was read as data."""

    name: str
    macro: bool


class _AsData(gin.config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        return Reference(scoped_configurable_name, macro=False)

    def macro(self, macro_name: str) -> Reference:
        return Reference(macro_name, macro=True)


def read_as_data(text: str) -> dict[str, Any]:
    """Bindings of gin text by their left sides, e.g. "base/unet.UNet.dim"; imports and executes nothing.

    Values are Python literals with `Reference`s in them.

    Raises:
      UserError: the text is not gin's, or includes other files.
    """
    found: dict[str, Any] = {}
    try:
        for statement in gin.config_parser.ConfigParser(text, _AsData()):
            if isinstance(statement, gin.config_parser.IncludeStatement):
                raise UserError(
                    f"the config includes {statement.filename!r}; expected an operative config, as runs write"
                )
            if isinstance(statement, gin.config_parser.BindingStatement):
                scope = f"{statement.scope}/" if statement.scope else ""
                argument = f".{statement.arg_name}" if statement.arg_name else ""
                found[f"{scope}{statement.selector}{argument}"] = statement.value
    except _PARSE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a gin config: {error}") from error
    return found


@contextlib.contextmanager
def _clean_gin(search_paths: Sequence[str]) -> Iterator[None]:
    """Lends gin the search paths, and leaves its global state as empty as it was before."""
    state = gin.config
    prefixes, readers, registry = state._LOCATION_PREFIXES, state._FILE_READERS, state._INVERSE_REGISTRY
    saved = list(prefixes), list(readers), dict(registry), dict(state._REGISTRY.items())
    gin.clear_config()
    prefixes.extend([*search_paths, shipped_root()])
    del readers[1:]  # gin's second reader looks for files in packages, and breaks on a folder like configs/.
    try:
        yield
    finally:
        gin.clear_config()
        prefixes[:], readers[:] = saved[:2]
        registry.clear()
        registry.update(saved[2])
        state._REGISTRY = type(state._REGISTRY)()
        for selector, configurable in saved[3].items():
            state._REGISTRY[selector] = configurable


def _parse_files(gin_files: Sequence[str]) -> dict[str, str]:
    """Parses the files; returns their import statements by the name that each one binds."""
    for file in gin_files:
        with _as_user_error(f"--gin_file={file}"):
            gin.parse_config_file(file)
    by_name: dict[str, str] = {}
    for statement in sorted(gin.config._IMPORTS, key=lambda s: (s.module, str(s.alias))):
        if statement.module.startswith("__gin__"):
            continue
        name = statement.bound_name() if statement.is_from or statement.alias else statement.module
        text = by_name.setdefault(name, statement.format())
        if text != statement.format():
            raise UserError(
                f"the gin files use the name {name} for two modules ({text}; {statement.format()}); import "
                "one of them under another name (… as …)"
            )
    return by_name


def _parse_bindings(bindings: Sequence[str], imports: dict[str, str]) -> None:
    known_macros = _defined_macros() | _used_macros()
    # A binding means what it would mean in the files, so it is parsed under their imports.
    header = [DYNAMIC, *imports.values()]
    for binding in bindings:
        with _as_user_error(_flag(binding)):
            name = binding.split("=", 1)[0].strip()
            if "." not in name and name not in known_macros:
                raise UserError(f"the gin files have no macro {name}{_did_you_mean(name, known_macros)}")
            gin.parse_config("\n".join([*header, _with_module(binding, imports)]))


def _with_module(binding: str, imports: dict[str, str]) -> str:
    """Completes "Class.parameter = …" to "module.Class.parameter = …" where one Class is imported."""
    name, value = binding.split("=", 1)
    scope, slash, selector = name.strip().rpartition("/")
    first, dot, _ = selector.partition(".")
    if not dot or first in {name.split(".")[0] for name in imports}:
        return binding
    modules = {name: _module(statement) for name, statement in imports.items()}
    found = {id(getattr(module, first)): name for name, module in modules.items() if hasattr(module, first)}
    if len(found) == 1:
        return f"{scope}{slash}{next(iter(found.values()))}.{selector} = {value.strip()}"
    classes = [name for module in modules.values() for name, _ in inspect.getmembers(module, inspect.isclass)]
    raise UserError(
        f"{'several' if found else 'none'} of the modules that the gin files import ({', '.join(modules)}) "
        f"have {first}{_did_you_mean(first, [*modules, *classes])}"
    )


def _module(import_statement: str) -> Any:
    module = re.sub(r" as \w+$", "", import_statement)
    module = re.sub(r"^from (\S+) import ", r"\1.", module).removeprefix("import ")
    return __import__(module, fromlist=[""])


def _defined_macros() -> set[str]:
    return {scope for scope, selector in gin.config._CONFIG if selector == "gin.macro"}


def _open_path_macros() -> list[str]:
    return [
        scope
        for (scope, selector), parameters in gin.config._CONFIG.items()
        if selector == "gin.macro"
        and scope.endswith(("_DIR", "_PATH"))
        and getattr(parameters.get("value"), "scoped_selector", None) == "gin.REQUIRED/gin.constant"
    ]


def _used_macros() -> set[str]:
    return {
        "/".join(part.scopes)
        for parameters in gin.config._CONFIG.values()
        for part in gin.config._iterate_flattened_values(list(parameters.values()))
        if isinstance(part, gin.config.ConfigurableReference) and part.selector == "gin.macro"
    }


def _check_macros(selector: str) -> set[str]:
    """Every macro that building `selector` uses has a value, and every %gin.REQUIRED has been given one.

    Returns:
      Selectors of all that building reaches.
    """
    defined = _defined_macros()
    todo: list[tuple[str | None, str]] = [(None, selector)]  # (macro or None, selector)
    holes = []
    for macro, bound in todo:  # Grows while it is walked.
        for where, reference in _references(macro, bound):
            name = "/".join(reference.scopes)
            if reference.scoped_selector == "gin.REQUIRED/gin.constant":
                holes.append(where)
            elif reference.selector == "gin.macro" and name not in defined:
                raise UserError(
                    f"{where} uses the macro %{name}, which has no value{_did_you_mean(name, defined)}; "
                    f"define it in a gin file or add --gin.{name}=…"
                )
            else:
                is_macro = reference.selector == "gin.macro"
                node = (name, "gin.macro") if is_macro else (None, reference.configurable.selector)
                if node not in todo:
                    todo.append(node)
    if holes:
        raise UserError(
            f"{' and '.join(sorted(holes))} must be given a value (the gin files leave it open with "
            f"%gin.REQUIRED); add {' '.join(f'--gin.{hole}=…' for hole in sorted(holes))}"
        )
    return {bound for _, bound in todo}


def _references(macro: str | None, bound: str) -> Iterator[tuple[str, Any]]:
    """References in the bindings of a macro or of a configurable, each with the name it is bound to."""
    for (scope, selector), parameters in gin.config._CONFIG.items():
        if selector == bound and macro in (None, scope):
            for parameter, value in parameters.items():
                for part in gin.config._iterate_flattened_values(value):
                    if isinstance(part, gin.config.ConfigurableReference):
                        yield macro or f"{selector.rsplit('.', 1)[-1]}.{parameter}", part


def _check_types(reached: set[str]) -> None:
    """Every value that is bound to a field of a dataclass is of the field's type; classes check ranges themselves.

    Args:
      reached: selectors of what is built: what a file says of other classes is for other modes.
    """
    for (scope, selector), parameters in gin.config._CONFIG.items():
        cls = gin.config._REGISTRY[selector].wrapped
        if selector not in reached or not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in fields.keys() & parameters.keys():
            field, where = fields[name], f"{f'{scope}/' if scope else ''}{cls.__name__}.{name}"
            with contextlib.suppress(_BuiltLaterError):
                check_field(where, _value(parameters[name]), field.type, infinite=field.default == math.inf)


class _BuiltLaterError(Exception):
    """A bound value has parts that only building gives."""


def _value(bound: Any) -> Any:
    """A bound value with the values of macros."""
    if isinstance(bound, gin.config.ConfigurableReference):
        macro = gin.config._CONFIG.get(("/".join(bound.scopes), "gin.macro"), {})
        if bound.selector != "gin.macro" or "value" not in macro:
            raise _BuiltLaterError
        return _value(macro["value"])
    return type(bound)(map(_value, bound)) if isinstance(bound, tuple | list) else bound


def _configurable(target: type[T]) -> Callable[[], T]:
    try:
        return gin.get_configurable(target)
    except ValueError:  # No file binds anything of the target: its defaults are meant.
        return gin.external_configurable(target, module=target.__module__)


@contextlib.contextmanager
def _as_user_error(source: str) -> Iterator[None]:
    """Turns what gin and the configs raise on bad input into a UserError that names its source."""
    try:
        yield
    except (*_PARSE_ERRORS, *_BUILD_ERRORS) as error:
        raise UserError(f"{_readable(error)}; from {source}") from error


def _readable(error: BaseException) -> str:
    message = str(error).strip()
    unknown = _UNKNOWN_PARAMETER.search(message)
    if unknown:
        selector, parameter = unknown.groups()
        known = _parameters(selector)
        message = message.replace(unknown.group(0), unknown.group(0) + _did_you_mean(parameter, known), 1)
    if isinstance(error, SyntaxError):
        message += "; a text value needs quotes (NAME = 'text'); in a shell: --gin.NAME=\"'text'\""
    innermost = _IN_CLASS.search(message)
    if innermost and message.partition(" ")[0] in _parameters(innermost[1]):
        message = f"{innermost[1]}.{message}"
    # gin names the class object twice; once is enough.
    message = _IN_CLASS.sub(r"in \1", message)
    return message.replace("bindings string line", "the flags, line")


def _parameters(selector: str) -> list[str]:
    """Parameters of the configurable whose last name is that of `selector`."""
    name = selector.rsplit(".", 1)[-1]
    found = [c.wrapped for c in gin.config._INVERSE_REGISTRY.values() if c.name == name]
    return [p for wrapped in found for p in inspect.signature(wrapped).parameters]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _flag(binding: str) -> str:
    return "--gin." + binding.replace(" = ", "=", 1)


def _quoted(name: str, value: str) -> str:
    """The value as gin text: as it is where it is a Python value or a reference, in quotes where it is plain text.

    What names a file or folder is text whatever it looks like, 2024 too, and a leading ~ is the home directory.
    """
    is_path = name.upper().endswith(("_DIR", "_PATH"))
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        literal = None if value[:1] in (_REFERENCES if is_path else _GIN_STARTS) else value
        if literal is not None and value.lower() in _PYTHON_SPELLING:
            raise UserError(f"--gin.{name}={value}: write {_PYTHON_SPELLING[value.lower()]}") from None
    if is_path and literal is not None:
        path = literal if isinstance(literal, str) else value
        if not path.strip():
            raise UserError(f"--gin.{name}= is empty; expected a path (the current folder is .)")
        try:
            return repr(with_home(f"--gin.{name}", path))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"--gin.{name}={ascii(value)} is no path ({error}); give another") from error
    return repr(value) if literal is value else value
