"""Pieces of HTML. Every text that enters a page passes through `escape` here."""

from collections.abc import Sequence
from html import escape

from ..server.studio import Progress


def message(text: str, kind: str = "note") -> str:
    """A sentence for the visitor; `kind` is note, or error."""
    return f'<p class="sd-message sd-{kind}" role="{"alert" if kind == "error" else "status"}">{escape(text)}</p>'


def progress(state: Progress, stages: Sequence[str]) -> str:
    """Where a run stands: its stages, a bar, the seconds that it takes and that are left, and a preview of each video."""
    total = max(1, state.steps)
    share = 100 * state.step / total
    left = "" if state.seconds_left is None else f"about {state.seconds_left:.0f} s left"
    left = left or (f"{state.seconds:.0f} s" if state.seconds else "")
    doing = f"<span>{escape(state.phase)}</span>" if state.phase else ""
    step = f"step {state.step} of {state.steps}" if state.step else ""
    bar = (
        f'<div class="sd-bar" role="progressbar" aria-label="{escape(state.stage)}" aria-valuemin="0"'
        f' aria-valuemax="{total}" aria-valuenow="{state.step}"><span style="width:{share:.0f}%"></span></div>'
    )
    line = (
        f'<div class="sd-line"><strong aria-live="polite">{escape(state.stage)}</strong>'
        f"{doing}<span>{step}</span><span>{left}</span></div>"
    )
    return f'<div class="sd-progress">{line}{bar}<div class="sd-previews">{_previews(state, stages)}</div></div>'


def _previews(state: Progress, stages: Sequence[str]) -> str:
    figures = []
    for stage in stages:
        source = state.previews.get(stage)
        picture = f'<img src="{escape(source)}" alt="preview of {escape(stage)}">' if source else "<div></div>"
        figures.append(f"<figure>{picture}<figcaption>{escape(stage)}</figcaption></figure>")
    return "".join(figures)


def table(head: Sequence[str], body: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose first column heads its rows."""
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    top = f"<thead><tr>{cells}</tr></thead>" if any(head) else ""
    said = f'<p class="sd-caption">{escape(caption)}</p>' if caption else ""
    name = f' aria-label="{escape(caption)}"' if caption else ""
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in body
    )
    return f'{said}<div class="sd-scroll"><table class="sd-table"{name}>{top}<tbody>{lines}</tbody></table></div>'
