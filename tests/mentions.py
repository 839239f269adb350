"""Finds names in prose and tells which of them do not exist: paths, modules, classes, flags, gin names, make targets.

The code is read, never imported, except that the console command prints its own help. Prose is Markdown, the comments
of gin files, and docstrings. In it are checked

    paths           docs/x.md anywhere; `room/module.py`, `room/` in backticks, from the repository or any folder of it
    dotted names    `imagen_jax.room.module.Class.field`, `module.function`, `Class.field`, `Class(field=1)`
    plain names     `ClassName`, `snake_case`, `UPPER_SNAKE`: must occur in code or in a gin file
    flags           --flag anywhere; in a line `imagen_jax MODE --flag` it must be a flag of that mode
    gin names       --gin.MACRO=…, --gin.Class.field=…
    commands        `make target`, `imagen_jax MODE`, `python -m module`, `python script.py`
    links           [text](page.md#heading)
"""

import ast
import contextlib
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("imagen_jax", "configs", "launch", "data", "tests", "docs", "benchmarks")
CODE = ("imagen_jax", "launch", "data", "benchmarks", "tests")
SOURCES = {".py", ".gin", ".md", ".toml", ".sh"}
# Kinds of files that a run leaves.
OUTPUTS = {".damaged", ".partial", ".json", ".jsonl", ".npy", ".npz", ".model", ".html", ".png"}
# Words of other programs that the pages tell a reader to type or to look for.
FOREIGN_FLAGS = {
    # Apache Beam and Dataflow
    *("direct_num_workers", "direct_running_mode", "default_sdk_harness_log_level", "runner", "project", "region"),
    *("temp_location", "sdk_container_image", "worker_machine_type", "dataflow_service_options", "experiments"),
    "number_of_worker_harness_threads",
    # pip and docker
    *("no-deps", "build-arg"),
    # scorers of prompt suites
    *("benchmark_data", "image_filepath_data", "method", "output_file", "outfile", "model-path", "out_dir", "outpath"),
    # XLA
    *("xla_cpu_experimental_ynn_fusion_type", "xla_force_host_platform_device_count"),
    "xla_gpu_deterministic_ops",
}
FOREIGN_COMMANDS = {"pip", "venv", "pytest", "mypy", "ruff"}

SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
FENCE = re.compile(r"^ *```.*?^ *```", re.M | re.S)
FLAG = re.compile(r"(?<![\w-])--([A-Za-z]\w*(?:[./\-]\w+)*)")
ROOTED = re.compile(r"(?<![\w./-])(?:" + "|".join(FOLDERS) + r")/[\w./-]*[\w/]")
LINK = re.compile(r"\]\(([^)\s]+)\)")
DOTTED = re.compile(r"(?<![\w.\"'/*-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?![\w/*{…<])")
COMMAND = re.compile(r"(?:imagen_jax|\S*python3?(?:\.\d+)?|make)(?: |$)")


class Names:
    """The names that exist in a repository.

    Args:
      root: its folder.
    """

    def __init__(self, root: Path):
        self.root = root
        found = [path for name in FOLDERS for path in (root / name).rglob("*") if "__pycache__" not in path.parts]
        found += [path for path in root.iterdir() if path.is_file()]
        self.files = {path.relative_to(root).as_posix() for path in found if path.is_file()}
        self.folders = {path.relative_to(root).as_posix() for path in found if path.is_dir()} | set(FOLDERS)
        self.modules: dict[str, dict[str, ast.AST | None]] = {}
        self.classes: dict[str, set[str]] = {}
        self.bases: dict[str, set[str]] = {}
        self.libraries: set[str] = set()
        self.words: set[str] = set()
        self.strings: set[str] = set()
        self.flags = {"help", "config", *FOREIGN_FLAGS}
        for file in self.files:
            if file.endswith(".py") and file.split("/")[0] in CODE:
                self._read_module(file, ast.parse((root / file).read_text()))
        setup = root / "setup.py"
        self._read_module("setup.py", ast.parse(setup.read_text() if setup.exists() else ""))
        gin = [re.sub(r"#.*", "", (root / file).read_text()) for file in self.files if file.endswith(".gin")]
        self.macros = {word for text in gin for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", text)}
        self.words |= {word for text in gin for word in re.findall(r"\w+", text)}
        self.words |= {Path(file).stem for file in self.files}
        makefile = root / "Makefile"
        self.targets = set(re.findall(r"^([\w-]+):", makefile.read_text(), re.M)) if makefile.exists() else set()

    def _read_module(self, file: str, tree: ast.Module) -> None:
        dotted = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        names: dict[str, ast.AST | None] = {}
        own_words = not file.startswith("tests/")
        for node in tree.body:
            names.update(dict.fromkeys(_defined(node), node))
        self.modules[dotted] = names
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                self._read_class(node)
            elif isinstance(node, ast.Import):
                self.libraries |= {alias.name.split(".")[0] for alias in node.names}
                self.libraries |= {alias.asname for alias in node.names if alias.asname}
            elif isinstance(node, ast.ImportFrom) and node.module:
                self.libraries.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                options = [one.value for one in node.args if isinstance(one, ast.Constant)]
                self.flags |= {one[2:] for one in options if str(one).startswith("--")}
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").startswith("DEFINE_"):
                self.flags |= {one.value for one in node.args[:1] if isinstance(one, ast.Constant)}
            if own_words:
                self._read_words(node, docstrings)

    def _read_class(self, node: ast.ClassDef) -> None:
        members = self.classes.setdefault(node.name, set())
        for inner in node.body:
            members |= _defined(inner)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and getattr(inner.value, "id", "") == "self":
                members.add(inner.attr)
        self.bases.setdefault(node.name, set()).update(ast.unparse(base).split("[")[0] for base in node.bases)

    def _read_words(self, node: ast.AST, docstrings: set[int]) -> None:
        for field in ("name", "id", "attr", "arg", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                self.words |= set(value.split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            self.strings.add(node.value)
            self.words |= set(re.findall(r"\w+", node.value))

    @functools.cached_property
    def modes(self) -> dict[str, set[str]]:
        """Flags of each mode of the console command and of its actions, from their own help."""
        found = {}
        for mode in _listed(_help()):
            own = _help(mode)
            helps = [own, *(_help(mode, action) for action in _listed(own))]
            found[mode] = {*FLAG.findall("".join(helps)), "help"}
        return found

    def members(self, name: str) -> set[str]:
        """Fields, methods and attributes of a class, and of those it derives from."""
        found = set(self.classes.get(name, ()))
        for base in self.bases.get(name, ()):
            last = base.split(".")[-1]
            if last in self.classes and last != name:
                found |= self.members(last)
        return found

    def has_dotted(self, name: str) -> bool:
        """Whether a dotted or plain name is a module, something in one, or a member of a class."""
        first, *rest = name.split(".")
        if not rest:
            return first in self.words or first in self.libraries or first in self.modules or self._is_module(first)
        if first in self.classes:
            return rest[0] in self.members(first)
        if any(self._in_module(module, name) for module in self.modules):
            return True
        if first in self.libraries - {"imagen_jax", *FOLDERS}:
            return True
        # A variable's attribute, as in `config.distill`; a module that is no variable has been looked into above.
        lower = first == first.lower() and not any(part[:1].isupper() for part in rest)
        return lower and first in self.words and all(part in self.words for part in rest) and first != "imagen_jax"

    def _is_module(self, name: str) -> bool:
        return any(module.split(".")[-1] == name for module in self.modules)

    def _in_module(self, module: str, name: str) -> bool:
        """Whether `name` is the tail of a module's path, and then names in it."""
        path, parts = module.split("."), name.split(".")
        for count in range(len(parts), 0, -1):
            if path[-count:] != parts[:count] or (parts[0] == "imagen_jax" and count != len(path)):
                continue
            rest = parts[count:]
            if not rest:
                return True
            if rest[0] in self.modules[module]:
                return len(rest) == 1 or rest[0] not in self.classes or rest[1] in self.members(rest[0])
        return False

    def has_path(self, token: str, near: str = "") -> bool:
        """Whether a path exists: from the repository, from the folder of the page, or as the end of a longer one."""
        token = token.rstrip("/")
        both = self.files | self.folders
        candidates = {token, f"{near}/{token}"}
        if token.split("/")[0] in FOLDERS:
            return token in both or f"{token}.py" in both or f"imagen_jax/{token}" in both
        return bool(candidates & both) or any(one.endswith("/" + token) for one in both)

    def is_written(self, token: str) -> bool:
        """Whether the code names such a file itself: what a run leaves, as config.gin."""
        return any(one == token or one.endswith("/" + token) for one in self.strings)

    def parameters(self, name: str) -> set[str] | None:
        """Names that a class or function of this name takes; None if there is none."""
        if name in self.classes:
            return self.members(name)
        for names in self.modules.values():
            node = names.get(name)
            if isinstance(node, ast.FunctionDef):
                arguments = node.args
                return {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        return None


def _defined(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {one.id for target in targets if target for one in ast.walk(target) if isinstance(one, ast.Name)}


def _listed(text: str) -> list[str]:
    return re.findall(r"^    (\w+)(?: |$)", text, re.M)


def _help(*words: str) -> str:
    from imagen_jax.main import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return text.getvalue()


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of what a file says to its readers: a whole page, comments, or each docstring."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if ast.get_docstring(node) is not None:
                    yield node.body[0].lineno, node.body[0].value.value  # type: ignore[attr-defined]
    elif path.suffix == ".gin":
        yield 1, "\n".join(line if line.startswith("#") else "" for line in text.splitlines())
    else:
        yield 1, text


def wrong_names(names: Names, path: Path) -> list[str]:
    """Names in a file that do not exist, as "file:line: name"."""
    shown = path.relative_to(names.root).as_posix()
    found = []
    for first, text in prose(path):
        for at, name in _wrong(names, text, Path(shown).parent.as_posix(), path.suffix == ".md"):
            line = first + text.count("\n", 0, at)
            found.append(f"{shown}:{line}: {name}")
    return sorted(set(found), key=lambda one: (int(one.split(":")[1]), one))


def _wrong(names: Names, text: str, near: str, is_page: bool) -> Iterator[tuple[int, str]]:
    fences = [(match.start(), match.group()) for match in FENCE.finditer(text)]
    running = FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    for match in ROOTED.finditer(text):
        if not _is_pattern(text, match) and not names.has_path(match.group(), near):
            yield match.start(), match.group()
    for match in FLAG.finditer(text):
        if not _has_flag(names, match.group(1)):
            yield match.start(), match.group()
    for match in LINK.finditer(running) if is_page else ():
        if not _has_link(names, match.group(1), near):
            yield match.start(), match.group(1)
    for match in SPAN.finditer(running):
        for name in _wrong_in_span(names, " ".join(match.group(1).split()), near):
            yield match.start(), name
    for start, fence in fences:
        for match in re.finditer(r"(?<![\w./*…-])[\w/]+\.(?:py|gin)\b(?!\.)", fence):
            if not names.has_path(match.group(), near) and not names.is_written(match.group()):
                yield start + match.start(), match.group()
        joined = re.sub(r"\\\n", lambda _: "\\ ", fence)
        for line in joined.splitlines()[1:]:
            for name in _wrong_in_command(names, line.strip()):
                yield start + max(fence.find(name), 0), name


def _is_pattern(text: str, match: re.Match[str]) -> bool:
    """Whether a path goes on with a placeholder: configs/models/demo_*.gin, configs/experiments/NAME.gin."""
    return text[match.end() : match.end() + 1] in set("*{…<") or bool(re.search(r"/[A-Z_]+\b|X", match.group()))


def _has_flag(names: Names, flag: str) -> bool:
    if flag.startswith("gin."):
        name = flag.removeprefix("gin.").split("/")[-1]
        head = name.split(".")[0]
        if "." not in name:
            return name in names.macros or name in {"NAME", "X"}
        return head == "Class" or names.has_dotted(name) or names.has_dotted(name.split(".", 1)[1])
    if flag.startswith("config."):
        return flag.split(".")[-1] in names.words
    known = names.flags.union(*names.modes.values())
    return flag.replace("-", "_") in {one.replace("-", "_") for one in known}


def _has_link(names: Names, link: str, near: str) -> bool:
    if "://" in link:
        return True
    page, _, heading = link.partition("#")
    path = (names.root / near / page).resolve() if page else None
    if path is not None and not path.exists():
        return False
    if not heading or path is None:
        return True
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _wrong_in_span(names: Names, span: str, near: str) -> Iterator[str]:
    if COMMAND.match(span):
        yield from _wrong_in_command(names, span)
        return
    call = re.fullmatch(r"(?:\w+\.)*(\w+)\((.*)\)", span)
    if call and (known := names.parameters(call.group(1))) is not None:
        yield from (f"{call.group(1)}({word}=)" for word in re.findall(r"(\w+)=", call.group(2)) if word not in known)
    for token in re.split(r"[\s,]+", span):
        if Path(token).suffix in SOURCES and not re.search(r"[*{}…<>]|[A-Z]{2,}_|_N\b", token) and "=" not in token:
            if not names.has_path(token, near) and not names.is_written(token):
                yield token
        elif re.fullmatch(r"[\w.]+(/[\w.]+)*/", token) and token.split("/")[0] not in {"runs", "corpora", ""}:
            if not names.has_path(token, near) and not any(token[:-1] in one.split("/") for one in names.strings):
                yield token
    if re.search(r"[/:]\w|--|\.\w+\(|[\"']", span) and not re.fullmatch(r"(\w+/)?[\w.]+(\(.*\))?( = .*)?", span):
        return
    for match in DOTTED.finditer(re.sub(r"\"[^\"]*\"|'[^']*'", "", span)):
        name = match.group()
        if "." + name.split(".")[-1] in SOURCES | OUTPUTS:
            continue
        if ("." in name or "_" in name or re.search(r"[a-z][A-Z]", name) or name == span) and len(name) > 3:
            if not names.has_dotted(name):
                yield name


def _wrong_in_command(names: Names, line: str) -> Iterator[str]:
    """What of a command line does not exist: mode, flags of the mode, make target, module or script."""
    line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.removeprefix("$ "))
    words = line.split()
    if not words or not COMMAND.match(line):
        return
    if words[0] == "make":
        yield from (word for word in words[1:2] if re.fullmatch(r"[a-z][\w-]*", word) and word not in names.targets)
    elif words[0] == "imagen_jax":
        mode = words[1] if len(words) > 1 else ""
        if re.fullmatch(r"[a-z]\w*", mode):
            if mode not in names.modes:
                yield mode
                return
            if mode == "script":  # Its flags are the script's.
                yield from (word for word in words[2:3] if not names.has_path(word))
                return
            for flag in FLAG.findall(line):
                if not flag.startswith("gin.") and flag not in names.modes[mode]:
                    yield f"{mode} --{flag}"
    elif words[1:2] == ["-m"] and len(words) > 2:
        if words[2] not in names.modules and words[2].split(".")[0] not in FOREIGN_COMMANDS:
            yield words[2]
    elif words[1:2] and words[1].endswith(".py") and not names.has_path(words[1]):
        yield words[1]


def wrong_arguments(path: Path) -> list[str]:
    """Names under "Args:" of a module's docstrings that are no parameters or fields there, as "file:line: name"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        known = _parameters_of(node)
        if isinstance(node, ast.ClassDef) and node.bases:
            continue  # Fields may come from a base.
        for listed in re.findall(r"^ *Args:\n((?: +.*\n|\n)*)", (ast.get_docstring(node) or "") + "\n", re.M):
            for names in re.findall(r"^  ([a-z_]\w*(?:, \w+)*):", listed, re.M):
                wrong = [name for name in names.split(", ") if name not in known]
                found += [f"{path.name}:{node.lineno}: {name}" for name in wrong]
    return found


def _parameters_of(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    if isinstance(node, ast.ClassDef):
        inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        return set().union(*(_defined(one) for one in node.body), *(_parameters_of(one) for one in inits))
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {one.arg for one in every if one}
