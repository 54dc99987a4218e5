"""The route of /v1/notes: write down what happens during a session."""

from __future__ import annotations

from fastapi import APIRouter
from pylsl import local_clock

from server.access.gate import Operator
from server.api.routes import On
from server.notes import NewNote
from server.problems import documented
from server.schemas import Change

router = APIRouter(prefix="/v1/notes", tags=["decoding"])


@router.post("", status_code=201, responses=documented(409))
def add_note(body: NewNote, on: On, who: Operator) -> Change:
    """Write a note into the journal, and send it as an LSL marker (stream type `Notes`).

    Returns its journal entry; `lsl_time_s` in the detail is its time stamp, LSL clock.
    """
    at_s = local_clock()
    entry = on.journal.note(who, "note", text=body.text, lsl_time_s=at_s)
    on.notes.send(at_s, body.text)
    return Change(**entry)
