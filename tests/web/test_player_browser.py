"""The video comparer in a real browser: what is seen is read back from its pixels."""

import re
from itertools import pairwise

import pytest
from browser import needed

needed("av", "av")
needed("playwright.sync_api", "playwright")

from player_pages import FRAMES, SERIES, at, bluish, served, start, write_videos  # noqa: E402  (needs PyAV)

PATIENCE = 600_000  # milliseconds until a test gives up waiting
# A clock that goes on by a sixtieth of a second with each picture of the screen: on a slow one, overdue frames are skipped.
STEADY = """(() => {
  const ask = window.requestAnimationFrame.bind(window);
  let now = performance.now();
  performance.now = () => now;
  window.requestAnimationFrame = (act) => ask(() => act((now += 1000 / 60)));
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_videos(folder)
    with served(folder) as url:
        yield url


@pytest.fixture
def visit(browser, address):
    """Opens a page; at the end no script may have failed and nothing outside the page's own server been asked for."""
    contexts, faults = [], []
    own = (f"{address}/", f"blob:{address}/", "data:")

    def open_page(**settings):
        context = browser.new_context(**{"viewport": {"width": 700, "height": 800}} | settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith(own) or faults.append(request.url))
        page.goto(f"{address}/page.html")
        page.wait_for_function("window.loaded")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.mark.parametrize(
    ("memory", "secure"),
    [(192 * 2**20, True), (192 * 2**20, False), (1, True)],
    ids=["whole clip", "page without https", "few frames"],
)
def test_both_sides_show_the_same_frame_at_every_moment_of_playing(visit, memory, secure, record_property):
    """The drift on screen: the frame numbers in the pixels of either half, at each picture drawn."""
    page = visit()
    if not secure:
        page.evaluate("delete window.VideoFrame")
    start(page, memory=memory)
    page.evaluate("watching = true; player.play()")
    page.wait_for_function(f"seen.length > {3 * FRAMES}")
    seen = page.evaluate("player.pause(); seen")
    drift = max(abs(left - right) for _, _, left, right in seen)
    record_property("largest drift in frames", drift)
    assert drift == 0
    assert all(frame == left for _, frame, left, _ in seen)
    assert {frame for _, frame, _, _ in seen} == set(range(FRAMES))


def test_once_in_memory_a_loop_leaves_no_frame_out(visit):
    page = visit()
    start(page)
    idle = "[...document.querySelectorAll('video')].every((video) => video.paused && !video.seeking)"
    page.wait_for_function(f"(window.still = {idle} ? (window.still ?? 0) + 1 : 0) > 30")  # screen pictures
    page.evaluate(STEADY)
    page.evaluate("watching = true; player.play()")
    page.wait_for_function(f"seen.length > {2 * FRAMES}")
    frames = [frame for _, frame, _, _ in page.evaluate("seen")]
    assert {(after - before) % FRAMES for before, after in pairwise(frames)} == {1}


@pytest.mark.parametrize(
    "missing",
    [
        "delete HTMLVideoElement.prototype.requestVideoFrameCallback",
        "HTMLVideoElement.prototype.play = async () => { throw new DOMException('no', 'NotAllowedError') }",
    ],
    ids=["frame reports", "permission to play"],
)
def test_without_it_frames_come_one_seek_at_a_time_and_are_still_pairs(visit, missing):
    page = visit()
    page.evaluate(f"void ({missing})")
    start(page)
    page.evaluate("player.seek(17)")
    at(page, 17)
    page.evaluate("watching = true; player.play()")
    page.wait_for_function("new Set(seen.map(([, frame]) => frame)).size === FRAMES")
    assert all(frame == left == right for _, frame, left, right in page.evaluate("seen"))


def test_a_seek_while_playing_or_before_a_pause_is_not_lost(visit):
    page = visit()
    start(page)
    page.evaluate("player.play()")
    page.wait_for_function("player.frame > 2")
    page.evaluate("events.length = 0; player.seek(25)")
    page.wait_for_function("events.length")
    assert page.evaluate("events[0][1]") == 25
    page.evaluate("for (const frame of [3, 30, 14, 6]) player.seek(frame)")
    page.wait_for_function("events.some(([, frame]) => frame === 6)")
    page.evaluate("player.seek(8); player.pause()")
    at(page, 8)
    page.evaluate("player.seek(30); player.play(); player.pause()")
    at(page, 30)


def test_scrubbing_and_stepping_are_exact(visit):
    page = visit()
    start(page)
    at(page, 0)
    for frame in (17, 5, FRAMES - 1, 0, 16):
        page.evaluate(f"player.seek({frame})")
        at(page, frame)
    page.get_by_role("button", name="Next frame").click()
    at(page, 17)
    page.get_by_role("button", name="Previous frame").click()
    page.get_by_role("button", name="Previous frame").click()
    at(page, 15)
    page.get_by_role("slider", name="Frame").fill("28")
    at(page, 28)
    page.evaluate("player.seek(1e9)")
    at(page, FRAMES - 1)
    page.evaluate("for (const frame of [3, 9, 12, 20, 8, 11]) player.seek(frame)")
    at(page, 11)


def test_the_wipe_follows_mouse_and_keys(visit):
    page = visit()
    start(page)
    stage = page.locator(".sedialect-player-stage").bounding_box()
    assert bluish(page.evaluate("pixel(0.4, 0.3)"))
    assert not bluish(page.evaluate("pixel(0.6, 0.3)"))
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + 40)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.8, stage["y"] + 60, steps=4)
    page.mouse.up()
    assert bluish(page.evaluate("pixel(0.75, 0.3)"))
    assert not bluish(page.evaluate("pixel(0.85, 0.3)"))
    divider = page.get_by_role("slider", name="Divider")
    assert divider.get_attribute("aria-valuetext") == "80 % 16 bit, 20 % 4 bit"
    divider.focus()
    page.keyboard.press("Home")
    assert not bluish(page.evaluate("pixel(0.02, 0.3)"))
    page.keyboard.press("ArrowRight")
    assert divider.get_attribute("aria-valuenow") == "2"
    assert page.evaluate("player.frame") == 0, "arrows on the divider move no frame"


def test_side_by_side_and_difference(visit):
    page = visit()
    start(page)
    page.get_by_role("button", name="Side by side").click()
    assert bluish(page.evaluate("pixel(0.02, 0.3)"))
    assert bluish(page.evaluate("pixel(0.48, 0.3)"))
    assert not bluish(page.evaluate("pixel(0.52, 0.3)"))
    page.get_by_role("button", name="Difference").click()
    gain = page.get_by_role("combobox", name="Amplification")
    gain.select_option("1")
    once = page.evaluate("pixel(0.5, 0.1)")
    assert once == pytest.approx([160, 10, 160], abs=6)  # |LEFT - RIGHT|, after the codec
    gain.select_option("4")
    assert page.evaluate("pixel(0.5, 0.1)") == [min(255, 4 * value) for value in once]
    assert max(page.evaluate("pixel(1.5 * CELL / WIDTH, 1 - 1.5 * CELL / HEIGHT)")) < 16, "equal pixels are black"


def test_keyboard_and_screen_reader(visit):
    page = visit()
    start(page, series=SERIES)
    scrub = page.get_by_role("slider", name="Frame")
    scrub.focus()
    page.keyboard.press("ArrowRight")
    at(page, 1)
    assert scrub.get_attribute("aria-valuetext") == f"Frame 2 of {FRAMES}, 0.04 s"
    page.keyboard.press("End")
    at(page, FRAMES - 1)
    page.keyboard.press(" ")
    page.get_by_role("button", name="Pause").wait_for()
    page.keyboard.press("k")
    page.get_by_role("button", name="Play", exact=True).wait_for()
    page.keyboard.press("3")
    assert page.get_by_role("button", name="Difference").get_attribute("aria-pressed") == "true"
    page.keyboard.press("l")
    assert page.get_by_role("button", name="Loop").get_attribute("aria-pressed") == "false"
    unnamed = page.locator(".sedialect-player :is(button, input, select, canvas, svg[role])").evaluate_all(
        "all => all.filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    videos = page.locator(".sedialect-player video").evaluate_all(
        "all => all.map(e => [e.tabIndex, e.getAttribute('aria-hidden')])"
    )
    assert videos == [[-1, "true"], [-1, "true"]]


def test_without_loop_it_stops_at_the_last_frame_and_starts_over(visit):
    page = visit()
    start(page)
    page.get_by_role("button", name="Loop").click()
    page.get_by_role("combobox", name="Speed").select_option("2")
    page.get_by_role("button", name="Play", exact=True).click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    at(page, FRAMES - 1)
    page.evaluate("events.length = 0; player.play()")
    page.wait_for_function("events.length > 2")
    assert page.evaluate("events[0][1]") < 5


def test_zoom_and_pan_move_both_sides_alike(visit):
    page = visit()
    start(page)
    page.evaluate("player.seek(21)")
    at(page, 21)
    page.get_by_role("button", name="Side by side").click()
    stage = page.locator(".sedialect-player-stage").bounding_box()
    grab = (stage["x"] + stage["width"] / 4, stage["y"] + stage["height"] / 2)

    def halves():
        row = "Array.from({ length: 100 }, (_, step) => pixel(step / 200 + HALF, 0.75)[1] > 128)"
        return [page.evaluate(row.replace("HALF", half)) for half in ("0", "0.5015")]

    page.mouse.move(stage["x"] + 30, stage["y"] + stage["height"] - 4)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    assert int(page.get_by_role("button", name="Fit").text_content().removesuffix("%")) == pytest.approx(223, abs=2)
    zoomed = halves()
    page.mouse.move(*grab)
    page.mouse.down()
    page.mouse.move(grab[0] - 70, grab[1], steps=3)
    page.mouse.up()
    panned = halves()
    for left, right in (zoomed, panned):
        assert 10 < sum(left) < 90, "the frame number is in sight"
        assert sum(a != b for a, b in zip(left, right, strict=True)) <= 3, "edges may fall between two samples"
    assert zoomed != panned
    page.keyboard.press("0")
    assert page.get_by_role("button", name="Fit").text_content() == "Fit"


def test_plots_show_values_and_seek(visit):
    page = visit()
    start(page, series=SERIES)
    now = page.locator(".sedialect-player-series-now")
    assert now.all_text_contents() == ["30.00 dB", "\u2013"]
    plot = page.locator(".sedialect-player-series-plot").first.bounding_box()
    page.mouse.click(plot["x"] + plot["width"] * 0.5, plot["y"] + 10)
    at(page, 16)
    assert now.first.text_content() == "31.60 dB"
    assert page.get_by_role("img", name="PSNR per frame, 30.00 to 33.20 dB").count() == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"right": {"src": "/gone.mp4", "label": "4 bit"}}, r"4 bit: .*HTTP 404"),
        ({"left": {"src": "/text.mp4", "label": "16 bit"}}, "16 bit: this file is not a video"),
        ({"right": {"src": "http://127.0.0.1:9/x.mp4", "label": "4 bit"}}, "4 bit: this file is missing"),
        ({"right": {"src": "/short.mp4", "label": "4 bit"}}, r"33 frames were announced.*4 bit: 23"),
        ({"series": [{"name": "PSNR", "unit": "dB", "values": [1, 2]}]}, '"PSNR" has 2 values for 33 frames'),
        ({"fps": 0}, "fps is 0"),
        ({"left": None}, "no address"),
    ],
    ids=["missing", "no video", "no server", "short", "series", "fps", "no source"],
)
def test_what_is_wrong_is_said(browser, address, options, said):
    page = browser.new_page()
    page.goto(f"{address}/page.html")
    page.wait_for_function("window.loaded")
    page.evaluate("more => void open_(more)", options)
    page.wait_for_function("events.some(([name]) => name === 'error')")
    message = page.get_by_role("alert").text_content()
    assert re.search(said, message), message
    assert page.evaluate("events") == [["error", message]]
    assert page.get_by_role("button", name="Play", exact=True).is_disabled()
    page.evaluate("player.play(), player.seek(3), player.pause()")
    page.evaluate("events.length = 0, player.load(options)")  # and it is not lost
    page.wait_for_function("events.some(([name]) => name === 'ready')")
    assert page.get_by_role("alert").count() == 0
    page.close()


def test_a_video_cut_in_half_is_an_error_or_whole_pairs_but_never_a_hang(visit):
    page = visit()
    page.evaluate("open_({ right: { src: '/half.mp4', label: '4 bit' } })")
    page.wait_for_function("events.some(([name]) => name === 'ready' || name === 'error')")
    page.evaluate("watching = true; player.play()")
    page.wait_for_function("events.some(([name]) => name === 'error') || seen.length > FRAMES")
    assert all(left == right for _, _, left, right in page.evaluate("seen"))


def test_several_players_one_in_a_shadow_root_and_nothing_left_behind(visit):
    page = visit()
    page.evaluate(
        """() => {
          window.made = []; window.frames_ = 0;
          const [make, revoke, ask] = [URL.createObjectURL, URL.revokeObjectURL, window.requestAnimationFrame];
          URL.createObjectURL = (file) => { const url = make.call(URL, file); made.push(url); return url; };
          URL.revokeObjectURL = (url) => { made.splice(made.indexOf(url), 1); revoke.call(URL, url); };
          window.requestAnimationFrame = (act) => { window.frames_++; return ask.call(window, act); };
          const host = document.body.appendChild(document.createElement("div"));
          const inner = document.createElement("div");
          host.attachShadow({ mode: "open" }).append(inner);
          const box = document.body.appendChild(document.createElement("div"));
          window.boxes = [document.querySelector("#box"), inner, box];
          window.players = boxes.map((one, number) => {
            const heard = []; listen(one, heard); one.heard = heard;
            return createPlayer(one, { ...options, right: number === 2 ? { src: "/gone.mp4" } : options.right });
          });
        }"""
    )
    page.wait_for_function("boxes.every(({ heard }) => heard.some(([name]) => name === 'ready' || name === 'error'))")
    assert page.evaluate("boxes.map(({ heard }) => heard.at(-1)[0])") == ["ready", "ready", "error"]
    page.evaluate("players[0].seek(20); players[1].play()")
    page.wait_for_function("players[0].frame === 20 && boxes[1].heard.length > 12")
    position = "getComputedStyle(boxes[1].querySelector('.sedialect-player-stage')).position"
    assert page.evaluate(position) == "relative", "the stylesheet reaches into the shadow root"
    page.evaluate("void (window.videos = boxes.flatMap((box) => [...box.querySelectorAll('video')]))")
    page.evaluate("players.forEach((player) => player.destroy())")
    page.wait_for_timeout(300)
    page.evaluate("frames_ = 0, boxes.forEach((box) => (box.heard.length = 0))")
    page.wait_for_timeout(500)
    assert page.evaluate("boxes.map((box) => box.childNodes.length)") == [0, 0, 0]
    assert page.evaluate("videos.every((video) => !video.currentSrc || video.networkState === 0)")
    assert page.evaluate("[made.length, frames_, boxes.map((box) => box.heard.length)]") == [0, 0, [0, 0, 0]]
    assert page.evaluate("document.querySelectorAll('style, video, canvas').length") == 1, "the page's own style"
    page.evaluate("players.forEach((player) => { player.destroy(); player.play(); player.seek(3); player.pause(); })")


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_it_fits_from_phone_to_desktop(visit, width):
    page = visit(viewport={"width": width, "height": 800}, has_touch=width == 360)
    start(page, series=SERIES)
    for mode in ("Wipe", "Side by side", "Difference"):
        page.get_by_role("button", name=mode).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.locator(".sedialect-player :is(button, input, select)").evaluate_all(
            "all => all.filter(e => e.offsetParent && (e.getBoundingClientRect().right > innerWidth || e.offsetWidth < 24))"
            ".map(e => e.outerHTML)"
        )
        assert outside == []


def test_themes(visit):
    page = visit(color_scheme="dark")
    lightness = "getComputedStyle(document.querySelector('.sedialect-player')).backgroundColor.match(/\\d+/g).map(Number)[0]"
    for theme, dark in (("auto", True), ("light", False), ("dark", True)):
        page.evaluate("events.length = 0, window.player?.destroy()")
        start(page, theme=theme)
        assert (page.evaluate(lightness) < 80) == dark, theme
    page.evaluate("player.load({ ...options, theme: 'auto' })")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(lightness) > 200


def test_a_stage_that_a_host_scales_stays_sharp_and_follows_the_pointer(visit):
    page = visit()
    start(page)
    width = page.evaluate("document.querySelector('canvas').width")
    page.evaluate("Object.assign(document.querySelector('#box').style, { transform: 'scale(0.5)', transformOrigin: '0 0' })")
    stage = page.locator("canvas").bounding_box()
    page.mouse.click(stage["x"] + stage["width"] * 0.3, stage["y"] + 20)
    assert page.get_by_role("slider", name="Divider").get_attribute("aria-valuenow") == "30"
    assert page.evaluate("document.querySelector('canvas').width") == round(width / 2)
    assert bluish(page.evaluate("pixel(0.28, 0.3)"))
    assert not bluish(page.evaluate("pixel(0.32, 0.3)"))


def test_filling_a_container_of_fixed_height(visit):
    page = visit()
    page.evaluate("document.querySelector('#box').style.height = '420px'")
    start(page, fill=True, series=SERIES)
    assert page.locator(".sedialect-player").bounding_box()["height"] == 420
    before = page.locator(".sedialect-player-stage").bounding_box()["height"]
    page.evaluate("document.querySelector('#box').style.height = '600px'")
    page.wait_for_function(f"document.querySelector('canvas').height === {round(before + 180)}")


def test_other_labels(visit):
    page = visit()
    start(page, locale="ja", labels={"play": "Los"})
    assert page.get_by_role("button", name="Los").count() == 1
    assert page.get_by_role("button", name="前のフレーム").count() == 1
