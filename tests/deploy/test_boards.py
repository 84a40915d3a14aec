"""Are the boards in deploy/grafana what their code makes, and whole?"""

import json
import re
from typing import Any

import pytest

from deploy.grafana.generate import FOLDER, files
from tests.deploy.test_prometheus import ROOT

BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(uid, panel, id=f"{uid}: {panel['title']}")
    for uid, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]


def test_the_files_are_current() -> None:
    there = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    assert there == files(), "python -m deploy.grafana.generate"


def test_there_are_five_boards_that_know_each_other_and_can_be_imported_together() -> None:
    assert sorted(BOARDS) == [
        f"fedreid-{name}" for name in ("coordinator", "federation", "rounds", "security", "silo")
    ]
    for uid, board in BOARDS.items():
        assert board["uid"] == uid and board["tags"] == ["fedreid"] and board["description"]
        assert board["schemaVersion"] >= 36 and "id" not in board
        assert board["links"][0]["tags"] == ["fedreid"]
        assert len(board["annotations"]["list"]) == 3
        names = [variable["name"] for variable in board["templating"]["list"]]
        assert names[:2] == ["datasource", "job"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("uid", "panel"), PANELS)
def test_a_panel_says_what_it_shows_and_in_what_unit(uid: str, panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    known = {f"${variable['name']}" for variable in BOARDS[uid]["templating"]["list"]}
    for target in panel["targets"]:
        asked = set(re.findall(r"\$\w+", target["expr"]))
        assert asked <= known | {"$__rate_interval"}


def test_no_two_panels_of_a_board_lie_on_each_other() -> None:
    for board in BOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
            taken |= cells


def test_the_provisioning_names_the_folder_of_the_boards() -> None:
    text = (ROOT / "deploy/grafana/provisioning/dashboards/fedreid.yml").read_text()
    assert "deploy/grafana/dashboards" in text and "type: file" in text
