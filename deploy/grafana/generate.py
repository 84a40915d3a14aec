"""How do the boards become files? ``python -m deploy.grafana.generate`` writes all of them."""

from pathlib import Path

from deploy.grafana.boards import ALL
from deploy.grafana.boards.common import ANNOTATIONS
from deploy.grafana.parts import board_json

FOLDER = Path(__file__).parent / "dashboards"


def files() -> dict[str, str]:
    """Each board's file name and content."""
    return {f"{board.uid}.json": board_json(board, ANNOTATIONS) for board in ALL}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, "utf-8")
