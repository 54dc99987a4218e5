"""The window of a task, drawn by pygame: cursor, target and state.

space   pauses and resumes        Esc, or closing the window   ends the run
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from clients.task.workspace import Block, Point, Target
from decoder.errors import SettingsError

SIDE = 800  # pixels
TEXT_SIZE = 22
BACKGROUND, LINE, TEXT = (18, 20, 24), (52, 56, 64), (170, 176, 186)
TARGET, ON_TARGET = (194, 112, 44), (40, 160, 110)
MOVES, STILL = (240, 240, 240), (190, 60, 60)
CURSOR_M = 0.004


@dataclass(frozen=True, kw_only=True)
class View:
    """What to draw. moves: whether the cursor can move. block: None between blocks."""

    cursor: Point
    moves: bool
    block: Block | None
    target: Target | None
    on_target: bool
    state: str
    n_done: int
    n_good: int


class Window:
    """A square window. Raises SettingsError without pygame or a display."""

    def __init__(self, *, side: int = SIDE) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # streaming.signals handles them
        try:
            import pygame
        except ImportError as error:
            raise SettingsError(
                "--window needs pygame; install it with: pip install 'volition[rig]'"
            ) from error
        self._pygame, self._side = pygame, side
        try:
            pygame.display.init()
            pygame.font.init()
            self.surface = pygame.display.set_mode((side, side))
        except pygame.error as error:
            raise SettingsError(
                f"no window can be opened ({error}); leave --window away"
            ) from error
        pygame.display.set_caption("volition task")
        self._font = pygame.font.Font(None, TEXT_SIZE)
        self._block = Block()

    def asked(self) -> list[str]:
        """The requests by key since the last call: `pause` (also to resume) and `quit`."""
        pygame = self._pygame
        wanted = {pygame.K_SPACE: "pause", pygame.K_ESCAPE: "quit"}
        asked = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                asked.append("quit")
            elif event.type == pygame.KEYDOWN and event.key in wanted:
                asked.append(wanted[event.key])
        return asked

    def draw(self, view: View) -> None:
        """Draw the view."""
        pygame = self._pygame
        self._block = view.block or self._block
        self.surface.fill(BACKGROUND)
        if self._block.task == "grid":
            self._draw_grid()
        if view.target is not None:
            self._draw_target(view.target, ON_TARGET if view.on_target else TARGET)
        colour = MOVES if view.moves else STILL
        pygame.draw.circle(self.surface, colour, self.pixel(view.cursor), self._length(CURSOR_M))
        self._write(view.state, row=0)
        if view.block is not None:
            self._write(f"{view.block.label}: {view.n_good} of {view.n_done}", row=1)
        pygame.display.flip()

    def pixel(self, position: Point) -> tuple[int, int]:
        """The pixel of a position in m; y points up."""
        half = self._block.half_side_m
        x, y = position
        scale = self._side / (2 * half)
        return round((x + half) * scale), round((half - y) * scale)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
        self._pygame.font.quit()

    def _length(self, metres: float) -> int:
        return max(2, round(metres * self._side / (2 * self._block.half_side_m)))

    def _draw_grid(self) -> None:
        for line in range(1, self._block.grid):
            at = round(line * self._side / self._block.grid)
            self._pygame.draw.line(self.surface, LINE, (at, 0), (at, self._side))
            self._pygame.draw.line(self.surface, LINE, (0, at), (self._side, at))

    def _draw_target(self, target: Target, colour: tuple[int, int, int]) -> None:
        pygame, half = self._pygame, self._length(target.half_m)
        x, y = self.pixel(target.position)
        if target.cell is None:
            pygame.draw.circle(self.surface, colour, (x, y), half)
        else:
            pygame.draw.rect(self.surface, colour, (x - half, y - half, 2 * half, 2 * half))

    def _write(self, text: str, *, row: int) -> None:
        self.surface.blit(self._font.render(text, True, TEXT), (10, 8 + row * (TEXT_SIZE + 2)))
