"""``oci-hpc-hooks validate FILE…``: every error of every file, whoever owns it."""

from __future__ import annotations

import argparse
from typing import List

from oci_hpc_hooks import cli
from oci_hpc_hooks.errors import ConfigError
from oci_hpc_hooks.inputs import profiles, site, trust, validate
from oci_hpc_hooks.inputs.validate import Invalid, Problem


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit codes: 0 all are valid, 2 one is not, or usage."
    parser.add_argument("files", nargs="+", metavar="FILE", help="site.json, profiles, an inventory, a plan")


def execute(args: argparse.Namespace) -> int:
    found = {file: problems(file, args.config_dir) for file in args.files}
    if args.json:
        files = [
            {"file": file, "ok": not errors, "errors": [{"path": error.path, "message": error.message} for error in errors]}
            for file, errors in found.items()
        ]
        cli.print_json({"version": 1, "files": files})
    else:
        for file, errors in found.items():
            print("\n".join(map(str, errors)) or f"{file}: ok")
    return ConfigError.exit_code if any(found.values()) else 0


def problems(file: str, config_dir: str) -> List[Problem]:
    """Everything that is wrong with one file. A site.json is held against the profiles that are installed and in ``config_dir``."""
    try:
        document = validate.parse(trust.read_any(file, validate.INVENTORY_LIMIT), file)
        kind = validate.kind_of(document, file)
        errors = list(validate.schema_problems(document, kind, file))
        if not errors and kind == "profile":
            errors = profiles.semantic_problems(document, file)
        elif not errors and kind == "site":
            others: List[Problem] = []  # of the profiles: not what this call is about
            known = profiles.read_profiles(config_dir, others, [])
            errors = site.semantic_problems(site.site(document), known, file)
        return errors
    except Invalid as error:
        return list(error.problems)
    except ConfigError as error:
        return [Problem(file, "$", error.what)]
