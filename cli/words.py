"""From words to values: which flags a command line has, and what each of them was given."""

import importlib
import importlib.util
import itertools
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from cli.choice import choose
from cli.flags import ConfigOptions, DataOptions, StudentOptions, networks
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from helper import config
from helper.errors import UserError
from helper.options import Parser
from models import MODELS

# What people of the field type, and what it is called here.
HINTS = {
    "gpu": "--device cuda:N", "gpu_id": "--device cuda:N", "T": "--kd_T", "temperature": "--kd_T",
    "kd_temperature": "--kd_T", "teacher": "--model_t or --path_t", "student": "--model_s",
    "arch": "--model", "bs": "--batch_size",
    "method": "--distill", "dataset_dir": "--data_dir", "data": "--data_dir", "j": "--num_workers",
    "workers": "--num_workers", "fp16": "--amp fp16", "k": "--nce_k",
}  # fmt: skip

Typed = Mapping[str, Any]


def parse(
    general: Sequence[type], argv: Sequence[str], about: str, students: bool = False
) -> tuple[list[type], dict[str, Any]]:
    """The option classes that this command line brings in, and the values typed on it.

    What is chosen (data set, method, views) is read first; only the chosen classes add their flags,
    so that a flag of another method is an error. Prints help and exits where it is asked for.
    """
    words = strip_help(argv)
    path, chosen = read_choices(words, students)
    warn_of_broken_files()
    classes = chosen_classes(general, chosen, students)
    parser = Parser(description=about, usage="%(prog)s [flags]")
    parser.add(*classes)
    if students:
        parser.add_switches("views", *(VIEWS[name].Options for name in VIEWS))
    if len(words) < len(argv):
        print(parser.format_help())
        print(networks(), flush=True)  # a full disk is told here, and not at the exit
        raise SystemExit(0)
    typed = read_words(parser, words)
    with config.in_file(path):
        configured = read_config(
            parser, config.words_of(path, parser.takes_several) if path else []
        )
    for name in configured.keys() & typed.keys():
        if configured[name] != typed[name]:
            warnings.warn(
                f"--{name} is {typed[name]} on the command line and {configured[name]} in {path}: "
                "the command line wins",
                stacklevel=2,
            )
    return classes, {**configured, **typed}


def read_tool(
    parser: Parser, options: type, argv: Sequence[str]
) -> tuple[dict[str, Any], Any] | None:
    """Words of a tool whose `parser` takes some without a flag -> these by name, and its options.

    None where help was asked for, and printed.
    """
    own = {action.dest for action in parser._actions}
    parser.add(options)
    if len(strip_help(argv)) < len(argv):
        print(parser.format_help(), end="")
        return None
    typed = read_words(parser, argv)
    bare = {name: typed.pop(name) for name in own & typed.keys()}
    return bare, options(**typed)


def read_choices(words: Sequence[str], students: bool) -> tuple[str, dict[str, Any]]:
    """The config file of a command line, and what both of them choose."""
    chooser = Parser()
    chooser.add(ConfigOptions, DataOptions, *([StudentOptions] if students else []))
    if students:
        chooser.add_switches("views", *(VIEWS[name].Options for name in VIEWS))
    chosen = vars(chooser.parse_known_args(words)[0])
    path = chosen.get("cfg", "")
    if path:
        configured = config.words_of(path, chooser.takes_several)
        with config.in_file(path):
            chosen = {**vars(chooser.parse_known_args(configured)[0]), **chosen}
    if where := chosen.get("methods_dir"):
        import_methods(where)
    return path, chosen


def chosen_classes(general: Sequence[type], chosen: Typed, students: bool) -> list[type]:
    """Option classes in the order of the help: the method's own first."""
    own = [part.Options for part in choose(chosen).parts] if students else []
    return [*own, *general, data_set(chosen).Options]


def data_set(typed: Typed) -> type:
    """The data set of a command line."""
    return DATASETS[typed.get("dataset", DataOptions.dataset)]


def import_methods(where: str) -> None:
    """Import methods from outside the toolkit: all files of a folder, or one package.module.

    A file that cannot be imported is noted in METHODS.broken. UserError where there are none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # a package of the working folder
    if not os.path.isdir(where) and not where.endswith(".py"):
        try:
            importlib.import_module(where)
        except (Exception, SystemExit) as error:  # whatever somebody's module raises
            raise UserError(
                f"--methods_dir {where} is no folder, and as a module it cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        return
    files = sorted(Path(where).glob("*.py")) if os.path.isdir(where) else [Path(where)]
    if not files or not os.path.isfile(files[0]):
        raise UserError(f"--methods_dir {where}: there are no .py files")
    for file in files:
        with METHODS.noting_broken(str(file)):
            import_file(file)


def import_file(file: Path) -> None:
    """Import a file that is in no package; once, unless it fails."""
    name = f"methods_dir_{file.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def warn_of_broken_files() -> None:
    """Name the files of methods, networks and data sets that could not be imported."""
    for registry in (METHODS, VIEWS, MODELS, DATASETS):
        for file, reason in registry.broken.items():
            warnings.warn(f"{file} is left out: {reason}", stacklevel=2)


def read_words(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """The values that a command line sets; UserError for a word that is none of its flags."""
    typed, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(explain_unknown(unknown[0], words, parser))
    return vars(typed)


def read_config(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """The same of a config file, which has each flag once, in one of its spellings."""
    values = read_words(parser, words)
    starts = [place for place, word in enumerate(words) if word.startswith("--")]
    if len(values) < len(starts):
        flags = [words[a:b] for a, b in itertools.pairwise([*starts, len(words)])]
        names = [name for flag in flags for name in read_words(parser, flag)]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice} is set twice: leave one")
    return values


def strip_help(argv: Sequence[str]) -> list[str]:
    return [word for word in argv if word not in ("-h", "--help")]


def flag_before(words: Sequence[str], place: int) -> str:
    """The last flag before a word of a command line; empty where there is none."""
    return next((word for word in reversed(words[:place]) if word.startswith("--")), "")


def read_said(cls: type, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of the options of a class, read as if it were typed: with the same bounds.

    Where to write is not for a file to say.
    """
    parser = Parser()
    parser.add(cls)
    names = {f.name for f in fields(cls)} - {"cache_dir"}
    known = {k: said[k] for k in said.keys() & names if said[k] is not None}
    texts = {k: ",".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in known.items()}
    return read_words(parser, [f"--{name}={text}" for name, text in texts.items()])


def explain_unknown(word: str, words: Sequence[str], parser: Parser) -> str:
    """Why a word of the command line is none of the flags: whose it is, or what it may mean."""
    flag = word.split("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    if not word.startswith("-"):
        flags = [flag_before(words, i) for i, other in enumerate(words) if other == word]
        if lists := [flag for flag in flags if parser.is_list(flag)]:
            return f"unknown argument {word}: a list has commas, as in {lists[0]} 1,2"
        return f"unknown argument {word}: it belongs to no flag; see --help"
    kinds = {"--distill": METHODS, "": VIEWS, "--dataset": DATASETS}
    owners = [
        f"{kind} {entry}".strip() if kind else f"--{entry}"
        for kind, registry in kinds.items()
        for entry in registry
        if name in {f.name for f in fields(registry[entry].Options)}
    ]
    if owners and word.startswith("--"):
        return f"{flag} is a flag of {', '.join(owners)}: it has no meaning here"
    if name in HINTS and parser.has(HINTS[name].split()[0]):
        return f"unknown argument {word}: it is {HINTS[name]} here"
    close = parser.closest(flag)
    return f"unknown argument {word}" + (f": did you mean {close}?" if close else "; see --help")
