"""`tirkit tools`: look at catalogues, bring tools in, add tools to a run."""

from pathlib import Path
from typing import Annotated

import typer

from tirkit.cli.shared import Overrides, out

tools_app = typer.Typer(no_args_is_help=True, help="Look at tool catalogues.")


@tools_app.command()
def check(
    file: Annotated[Path, typer.Argument(help="catalogue, JSON or JSONL", show_default=False)],
) -> None:
    """Validate a catalogue: every bad line with its reason, what was merged, what was renamed."""
    from tirkit.tools.catalogue import load_catalogue

    catalogue = load_catalogue(file)
    for issue in catalogue.issues:
        out.print(f"{issue.file}:{issue.line}: {issue.reason}", markup=False, highlight=False)
    out.print(
        f"{len(catalogue.tools)} tools, {catalogue.merged} exact duplicates merged, {catalogue.renamed} renamed, "
        f"{len(catalogue.issues)} bad lines"
    )
    raise typer.Exit(1 if catalogue.issues else 0)


@tools_app.command("import")
def import_tools(
    source: Annotated[
        str,
        typer.Argument(
            help="my_tools.py, a module (my_package.tools), an OpenAPI document (file or address), or an MCP server: "
            "'mcp:python server.py', mcp:http://localhost:8000/mcp",
            show_default=False,
        ),
    ],
    catalogue: Annotated[Path, typer.Option("--out", help="catalogue, JSONL")] = Path("catalogue.jsonl"),
    update: Annotated[bool, typer.Option(help="change a catalogue that differs, instead of only showing how")] = False,
    server: Annotated[str, typer.Option(help="OpenAPI: the service's address, instead of the document's")] = "",
    header: Annotated[
        list[str] | None,
        typer.Option(help="sent with every call: 'Authorization: Bearer {MY_TOKEN}' names an environment variable"),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="MCP: an environment variable for the command")] = None,
    prefix: Annotated[str, typer.Option(help="begins the tools' names, where two sources share some")] = "",
) -> None:
    """Import Python functions, OpenAPI operations or MCP tools into a catalogue; again: show what was changed since.

    Exit code 1 where something was left out, or the catalogue differs and was not changed.
    """
    from tirkit.evaluation.tables import visible
    from tirkit.tools.http_secrets import read_header
    from tirkit.tools.imports import update_catalogue
    from tirkit.tools.origin import find_tools

    found = find_tools(source, server, dict(map(read_header, header or ())), env or (), prefix)
    fresh = not catalogue.exists()
    difference = update_catalogue(catalogue, found.tools, found.source, update)
    for line in (*map(str, found.skipped), *found.summary(), *difference.lines()):
        out.print(visible(line), markup=False, highlight=False, soft_wrap=True)
    written = difference and (fresh or update)
    said = "written" if written else "not changed: --update takes it over" if difference else "up to date"
    out.print(
        f"{len(found.tools)} tools ({len(found.read_only)} read-only), {len(found.skipped)} left out; "
        f"{catalogue} {said}",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(1 if found.skipped or (difference and not written) else 0)


@tools_app.command("add")
def add_tools(
    run_folder: Annotated[Path, typer.Argument(help="a finished run", show_default=False)],
    catalogue: Annotated[str, typer.Argument(help="new and changed tools, or all of them", show_default=False)],
    overrides: Overrides = None,
    out_folder: Annotated[Path, typer.Option("--out", help="run folder to make; again: goes on")] = Path("runs/grown"),
    remove: Annotated[bool, typer.Option(help="remove the tools that the catalogue lacks")] = False,
    questions: Annotated[str, typer.Option(help="test questions about the new tools")] = "",
) -> None:
    """Add tools to a finished run: new vocabulary rows and a small LoRA, old tools replayed; the result is a run.

    A tool that was changed keeps its token and is learned again; the token of a removed one is never given away.
    """
    from tirkit.pipeline.grow import grown_config, growth_table
    from tirkit.pipeline.run import run_stages

    run_stages(grown_config(run_folder, catalogue, overrides or (), remove, questions), out_folder)
    out.print(growth_table(out_folder))
