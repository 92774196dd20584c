"""What programs call, through `gradio_client` or plain HTTP: the same jobs as the page's, without its pictures."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from ...sedialect_core.config import SeDialectConfig
from ...sedialect_core.errors import SeDialectError
from ..tabs.compare import UNEXPECTED
from .limits import OFFERED, choices_of, shown_value
from .service import NOT_CALIBRATED, Finished, Service
from .studio import Stopped

LOG = logging.getLogger(__name__)


class Endpoints:
    """`/about` and `/compare`; the tab of formats has `/encode_block`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        offer = service.offer
        values = (
            gr.Textbox(offer.prompt, label="prompt", visible=False, max_length=None),
            gr.Number(offer.seed, label="seed", visible=False),
            gr.Number(offer.steps, label="steps", visible=False),
            gr.Number(offer.guidance_scale, label="guidance_scale", visible=False),
            gr.Number(offer.side, label="width", visible=False),
            gr.Number(offer.side, label="height", visible=False),
            gr.Number(offer.frames, label="num_frames", visible=False),
            gr.Textbox("", label="negative_prompt", visible=False),
            gr.Textbox("default", label="preset", visible=False),
            gr.JSON({}, label="settings", visible=False),
            gr.Textbox("", label="keep", visible=False),
            gr.Textbox(NOT_CALIBRATED, label="calibration", visible=False),
        )
        numbers = gr.JSON(label="numbers", visible=False)
        files = gr.File(label="files", file_count="multiple", visible=False)
        gr.Button(visible=False).click(self.compare, values, [numbers, files], api_name="compare", concurrency_limit=None)
        gr.Button(visible=False).click(self.about, None, numbers, api_name="about", queue=False)

    def about(self) -> dict[str, Any]:
        """The model, whether it is ready, and the bounds of what may be asked."""
        studio = self.service.studio
        start = SeDialectConfig()
        settings = {name: list(choices_of(entry)) or shown_value(start, entry) for name, entry in OFFERED.items()}
        state = {"model": self.service.name, "ready": studio.ready, "failed": studio.failed, "notes": studio.notes}
        offer, calibrations = asdict(self.service.offer), self.service.calibrations
        return {**state, "offer": offer, "settings": settings, "calibrations": calibrations}

    def compare(
        self,
        request: gr.Request,
        prompt: str,
        seed: float,
        steps: float,
        guidance_scale: float,
        width: float,
        height: float,
        num_frames: float,
        negative_prompt: str,
        preset: str,
        settings: dict[str, Any] | None,
        keep: str,
        calibration: str = NOT_CALIBRATED,
    ) -> Iterator[tuple[dict[str, Any], list[str] | None]]:
        """Both videos: where it stands while they are made; at last the numbers, and files: both, side by side, JSON."""
        asked = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "width": width,
            "height": height,
            "num_frames": num_frames,
        }
        try:
            if not isinstance(settings, dict | None):
                raise _told("settings must be an object of settings by name")
            session = self.service.listeners.session_of(request)
            for news in self.service.compare(session, asked, preset, settings or {}, keep, calibration):
                if isinstance(news, Finished):
                    yield news.numbers, [str(path) for path in news.files]
                else:
                    told = {"stage": news.stage, "phase": news.phase, "step": news.step, "steps": news.steps}
                    yield {**told, "seconds": round(news.seconds)}, None
        except SeDialectError as error:
            raise _told(str(error)) from error
        except Stopped as error:
            raise _told("the run was stopped") from error
        except gr.Error:
            raise
        except Exception as error:  # a bug: it goes to the operator's log
            LOG.exception("comparison failed")
            raise _told(UNEXPECTED) from error


def _told(what: str) -> gr.Error:
    """An error for the caller alone: a visitor's mistakes, and what a visitor wrote, are no affair of the operator's log."""
    return gr.Error(what, print_exception=False)
