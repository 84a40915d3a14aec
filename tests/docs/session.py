"""How is a page typed from top to bottom? A folder, a shell, and the programs on its path."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.docs.pages import ROOT, Block, blocks

_PROGRAMS = {
    "coordinator": "coordinator",
    "silo-agent": "silo_agent",
    "fedreid-bench": "benchmark",
}
_BLOCK_S = 900.0
_POLL_S = 0.2


class Session:
    """One page's session; every program that it started ends with it."""

    def __init__(self, folder: Path, replaced: Mapping[str, str]) -> None:
        """``replaced`` are the names of a page's example that are others here, longest first."""
        self.folder = folder
        self._replaced = replaced
        self._kept: dict[str, tuple[subprocess.Popen[bytes], Path]] = {}
        programs = folder / "bin"
        programs.mkdir(parents=True)
        for name, module in _PROGRAMS.items():
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            (programs / name).chmod(0o755)
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for command in reversed(list(self._kept)):
            self.stop(command)

    def type_page(self, page: Path, meanwhile: Mapping[str, Callable[[], None]]) -> list[str]:
        """Do what a page says; the commands that were run."""
        run = []
        for block in blocks(page):
            if block.mark == "meanwhile":
                meanwhile[block.value]()
            elif block.mark == "file":
                (self.folder / block.value).write_text(self.said_here(block.text))
            elif block.is_typed and block.mark not in ("not run", "run by"):
                run.append(self._type(block))
        return run

    def _type(self, block: Block) -> str:
        text = self.said_here(block.text)
        if block.mark == "keeps running until it says":
            self.keep(text.strip(), until=self.said_here(block.value))
            return text
        if block.mark == "stops":
            (command,) = (kept for kept in self._kept if kept.startswith(block.value))
            self.stop(command)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_BLOCK_S,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return text

    def keep(self, command: str, *, until: str) -> None:
        """Start a program that stays, and wait until it has said something."""
        log = self.folder / f"kept-{len(self._kept)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self._kept[command] = (process, log)
        until_s = time.monotonic() + _BLOCK_S
        while until not in log.read_text("utf-8", "replace"):
            assert process.poll() is None and time.monotonic() < until_s, log.read_text()
            time.sleep(_POLL_S)

    def stop(self, command: str) -> None:
        """End a program that stays, as its supervisor would."""
        process, _ = self._kept.pop(command)
        process.terminate()
        try:
            process.wait(60.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def said_here(self, text: str) -> str:
        """A page's text with the names of this session."""
        for name, here in self._replaced.items():
            text = text.replace(name, here)
        return text
