"""Two import contracts that import-linter does not have: what a pure module may import, and which room may use a library.

Both read the import graph that import-linter built, so a contract in `.importlinter` is the whole truth about an arrow.
Lists are kept there and nowhere else: `pure_modules` is read by the coverage gate too.
"""

import configparser
import sys
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

CONFIG = Path(__file__).parent.parent / ".importlinter"
PURE_SECTION = "importlinter:contract:pure"

# Standard library modules that read a clock, touch a file or talk to somebody: law 8 keeps them out of the pure core.
IMPURE_STDLIB = frozenset(
    "asyncio concurrent ctypes fcntl http mmap multiprocessing os pathlib queue resource select selectors shutil signal socket "
    "socketserver sqlite3 ssl subprocess tempfile termios threading time urllib".split()
)


def pure_modules(config: Path = CONFIG) -> list[str]:
    """The modules and packages (with all below) that `.importlinter` declares pure."""
    parser = configparser.ConfigParser()
    parser.read(config, encoding="utf-8")
    return parser[PURE_SECTION]["modules"].split()


def below(module: str, roots: list[str]) -> bool:
    """Whether a module is one of the roots or inside one."""
    return any(module == root or module.startswith(root + ".") for root in roots)


def strings(field: object) -> list[str]:
    """The values of a contract's list field; import-linter types it as the field's class."""
    assert isinstance(field, list)
    return field


class PureContract(Contract):
    """Modules import each other, the harmless part of the standard library, and the libraries listed; nothing else."""

    type_name = "pure"

    modules = fields.ListField(subfield=fields.StringField())
    may_import = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        roots, allowed = strings(self.modules), strings(self.may_import)
        known = sorted(module for module in graph.modules if below(module, roots))
        missing = [root for root in roots if root not in graph.modules]
        bad = [
            (module, imported)
            for module in known
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if not self._fine(imported, roots, allowed)
        ]
        return ContractCheck(kept=not bad and not missing, metadata={"bad": bad, "missing": missing})

    @staticmethod
    def _fine(imported: str, roots: list[str], allowed: list[str]) -> bool:
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names:
            return top not in IMPURE_STDLIB
        # `from package import module` imports the package too; its __init__ is judged where it is listed.
        return below(imported, roots) or below(imported, allowed) or any(root.startswith(imported + ".") for root in roots)

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, imported in check.metadata["bad"]:
            output.print_error(f"{module} is pure and must not import {imported}")
        for module in check.metadata["missing"]:
            output.print_error(f"{module} is listed as pure and does not exist")


class AdapterContract(Contract):
    """Each library is imported by the rooms beside its name only: `library: room room`."""

    type_name = "adapter"

    libraries = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        bad = []
        for line in strings(self.libraries):
            library, _, rooms = line.partition(":")
            if library not in graph.modules:
                continue  # nobody imports it now
            bad += [
                (importer, library)
                for importer in sorted(graph.find_modules_that_directly_import(library))
                if not below(importer, rooms.split())
            ]
        return ContractCheck(kept=not bad, metadata={"bad": bad})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, library in check.metadata["bad"]:
            output.print_error(f"{importer} imports {library}, which belongs to another room")
