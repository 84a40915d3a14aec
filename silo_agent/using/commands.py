"""The commands that use a model: evaluate, model export, embed, search. Nothing is sent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from fedreid.console import progress_shown

if TYPE_CHECKING:
    from fedreid.datasets.layouts import Dataset
    from silo_agent.config import Folders

DEFAULT_DATA = Path("silo-agent-data")

Data = Annotated[Path, typer.Option("--data", help="The agent's data folder.")]
Layout = Annotated[str, typer.Option(help="A layout of docs/datasets.md, or auto.")]
Split = Annotated[int, typer.Option(help="Which of the ten drawn splits of a small set, 0 to 9.")]
Confirm = Annotated[
    bool,
    typer.Option(
        "--confirm-withdrawn",
        help="Use a dataset that its owners have withdrawn (DukeMTMC-reID); you answer for it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str, typer.Option(help="global, local, standalone, or the path of a .safetensors file.")
]

model_app = typer.Typer(no_args_is_help=True, help="The models of this silo.")


def evaluate(
    model: Model = "global",
    dataset: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it
        typer.Option(help="Another dataset than the silo's own."),
    ] = None,
    layout: Layout = "auto",
    split: Split = 0,
    confirm_withdrawn: Confirm = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="k-reciprocal re-ranking of all queries together.")
    ] = False,
    visualise: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="OUT.png", help="Draw ranked lists: query and its ten best."),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, max=50, help="Queries in the picture.")] = 8,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Measure a model on the silo's own query and gallery, or on another dataset's."""
    from fedreid.datasets.layouts import load
    from silo_agent.config import Folders
    from silo_agent.using.chosen import choose
    from silo_agent.using.evaluating import draw, evaluate_model
    from silo_agent.using.printing import print_measurement

    folders = Folders(data.resolve())
    images = (
        own_dataset(folders)
        if dataset is None
        else load(dataset, layout, split=split, withdrawn_confirmed=confirm_withdrawn)
    )
    chosen = choose(folders, model)
    with progress_shown() as show:
        measured = evaluate_model(
            chosen,
            images,
            queries_shown=queries if visualise else 0,
            rerank=rerank,
            tell=lambda done, total: show("measuring", done / total),
        )
    if visualise:
        draw(measured, visualise)
    print_measurement(measured, images.root, picture=visualise, as_json=as_json)


@model_app.command("export")
def model_export(
    form: Annotated[
        Literal["onnx", "safetensors", "torchscript"],
        typer.Option("--format", help="What the other software reads."),
    ],
    out: Annotated[Path, typer.Option(help="File to write; a note FILE.json lies beside it.")],
    model: Annotated[
        Literal["global", "local", "standalone"], typer.Option(help="Which of the three.")
    ] = "global",
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Write a model for other software, after checking that the file gives the same embeddings."""
    from silo_agent.config import Folders
    from silo_agent.using.chosen import choose
    from silo_agent.using.exporting import export_model
    from silo_agent.using.printing import print_export

    folders = Folders(data.resolve())
    images = own_dataset(folders)
    chosen = choose(folders, model)
    with progress_shown() as show:
        show(f"exporting to {form}", 0.0)
        exported = export_model(chosen, form, out, dataset=images)
    print_export(exported, as_json=as_json)


def embed(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    out: Annotated[Path, typer.Option(help="FILE.npz, FILE.parquet or FILE.faiss.")],
    model: Model = "global",
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Give each image its embedding, in a file that 'search' takes as a gallery."""
    from silo_agent.config import Folders
    from silo_agent.using import gallery
    from silo_agent.using.chosen import choose
    from silo_agent.using.embedding import embed as embed_images
    from silo_agent.using.printing import print_embedded

    gallery.check_name(out)
    chosen = choose(Folders(data.resolve()), model)
    with progress_shown() as show:
        embedded = embed_images(
            chosen, images, tell=lambda done, total: show("embedding", done / total)
        )
    gallery.save(out, embedded.embeddings)
    print_embedded(embedded, out, as_json=as_json)


def search(
    queries: Annotated[list[Path], typer.Argument(help="Images to look for; files and folders.")],
    gallery: Annotated[
        Path, typer.Option(help="Where to look: a folder of images, or a file of 'embed'.")
    ],
    top: Annotated[int, typer.Option(min=1, max=1000, help="Matches per query.")] = 10,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="TABLE.csv", help="Write query, rank, path, similarity."),
    ] = None,
    picture: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="OUT.png", help="Draw the matches of the first queries."),
    ] = None,
    model: Model = "global",
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Rank a gallery's images by how much they look like each query's person."""
    from silo_agent.config import Folders
    from silo_agent.using.chosen import choose
    from silo_agent.using.printing import print_found
    from silo_agent.using.searching import draw_matches, search_images, write_table

    chosen = choose(Folders(data.resolve()), model)
    with progress_shown() as show:
        found = search_images(
            chosen,
            queries,
            gallery,
            top=top,
            tell=lambda done, total: show("embedding", done / total),
        )
    if out:
        write_table(found, out)
    if picture:
        draw_matches(found, picture)
    print_found(found, table=out, picture=picture, as_json=as_json)


def own_dataset(folders: "Folders") -> "Dataset":
    """The images that the silo trains and is measured on, in the very split that it uses."""
    from fedreid.datasets.layouts import load
    from silo_agent.config import load_config

    config = load_config(folders)
    return load(
        Path(config.dataset),
        config.layout,
        split=config.split,
        withdrawn_confirmed=config.withdrawn_confirmed,
    )
