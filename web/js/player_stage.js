// Pointers on the stage: the divider, moving the picture, two fingers, the wheel.

/**
 * `view` tells its state() and whether wheelZooms(), and does setDivider(x), pan(dx, dy, point) and zoomAt(point, factor),
 * all in CSS pixels of the stage.
 */
export function attachPointers({ stage, divider }, view, signal) {
  const down = new Map();
  let dragging = null; // "divider", "picture" or "pinch"

  // Hosts may scale the stage (ComfyUI zooms its canvas with a transform), so pixels are counted in the stage's own.
  const local = (event) => {
    const box = stage.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * stage.clientWidth,
      y: ((event.clientY - box.top) / box.height) * stage.clientHeight,
    };
  };
  const kind = (event) => {
    if (down.size > 1) return "pinch";
    const { mode, zoom } = view.state();
    if (divider.contains(event.target) || (mode === "wipe" && zoom.scale === 1)) return "divider";
    return zoom.scale > 1 ? "picture" : null;
  };
  const press = (event) => {
    if (event.button || down.size === 2) return;
    stage.setPointerCapture(event.pointerId);
    down.set(event.pointerId, local(event));
    dragging = kind(event);
    stage.toggleAttribute("data-dragging", dragging === "picture");
    if (dragging === "divider") view.setDivider(local(event).x);
  };
  const move = (event) => {
    if (!down.has(event.pointerId)) return;
    const [point, before] = [local(event), down.get(event.pointerId)];
    if (dragging === "divider") view.setDivider(point.x);
    if (dragging === "picture") view.pan(point.x - before.x, point.y - before.y, point);
    if (dragging === "pinch") pinch(event.pointerId, before, point);
    down.set(event.pointerId, point);
  };
  const pinch = (id, before, point) => {
    const [, other] = [...down].find(([key]) => key !== id);
    const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y);
    view.zoomAt({ x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 }, apart(point) / Math.max(1, apart(before)));
    view.pan((point.x - before.x) / 2, (point.y - before.y) / 2, point);
  };
  const release = (event) => {
    down.delete(event.pointerId);
    dragging = down.size ? "picture" : null; // one finger left of two goes on moving the picture
    if (!dragging) stage.removeAttribute("data-dragging");
  };
  const wheel = (event) => {
    if (!event.ctrlKey && !event.metaKey && !view.wheelZooms()) return; // a pinch on a touchpad arrives with ctrlKey
    event.preventDefault();
    event.stopPropagation();
    view.zoomAt(local(event), Math.exp(-event.deltaY * 0.004));
  };
  stage.addEventListener("pointerdown", press, { signal });
  stage.addEventListener("pointermove", move, { signal });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
    stage.addEventListener(name, release, { signal });
  stage.addEventListener("wheel", wheel, { signal, passive: false });
  stage.addEventListener(
    "dblclick",
    (event) => {
      const { mode, zoom } = view.state();
      if (divider.contains(event.target) || (mode === "wipe" && zoom.scale === 1)) return;
      view.zoomAt(local(event), zoom.scale > 1 ? 0 : 2);
    },
    { signal },
  );
}
