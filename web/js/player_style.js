// The player's stylesheet. It travels inside each player, so that it also reaches into shadow roots and leaves with it.

export const STYLE = `
.sedialect-player {
  --bg: light-dark(#ffffff, #17191d); --raised: light-dark(#f3f4f6, #22252b); --line: light-dark(#dcdfe4, #343840);
  --text: light-dark(#1b1f24, #e7e9ec); --quiet: light-dark(#5b6470, #9da4af); --accent: light-dark(#2159c4, #7aa7ff);
  --on-accent: light-dark(#ffffff, #10131a); --series-0: light-dark(#2159c4, #7aa7ff); --series-1: light-dark(#0f766e, #4fc7b5);
  --series-2: light-dark(#a34a0a, #f0a868); --series-3: light-dark(#7b3fb3, #c39bf2);
  color-scheme: light dark; container-type: inline-size; box-sizing: border-box; width: 100%; min-width: 0;
  color: var(--text); background: var(--bg); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  font: 13px/1.4 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; font-variant-numeric: tabular-nums;
  outline: none; text-align: left; letter-spacing: normal; -webkit-tap-highlight-color: transparent;
}
.sedialect-player[data-theme="light"] { color-scheme: light; }
.sedialect-player[data-theme="dark"] { color-scheme: dark; }
.sedialect-player[data-fill] { height: 100%; display: flex; flex-direction: column; }
.sedialect-player *, .sedialect-player *::before { box-sizing: border-box; }
.sedialect-player [hidden] { display: none !important; }
.sedialect-player-media { position: absolute; width: 2px; height: 2px; opacity: 0; pointer-events: none; }

.sedialect-player-stage {
  position: relative; overflow: hidden; background: #0b0c0e; cursor: default; touch-action: pan-y; user-select: none;
  min-height: 80px; flex: 1 1 auto;
}
.sedialect-player-stage[data-zoomed] { cursor: grab; touch-action: none; }
.sedialect-player-stage[data-dragging] { cursor: grabbing; }
.sedialect-player-stage[data-mode="wipe"]:not([data-zoomed]) { cursor: ew-resize; }
.sedialect-player-canvas { position: absolute; inset: 0; width: 100%; height: 100%; display: block; }
.sedialect-player-name {
  position: absolute; max-width: 46%; padding: 3px 9px; border-radius: 6px; color: #fff; background: rgb(10 12 15 / .66);
  font-weight: 550; font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; pointer-events: none;
  transition: opacity .15s;
}
.sedialect-player-name[data-covered] { opacity: 0; }
.sedialect-player-divider {
  position: absolute; width: 44px; margin-left: -22px; cursor: ew-resize; touch-action: none; outline: none;
}
.sedialect-player-divider::before {
  content: ""; position: absolute; inset: 0 auto 0 50%; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px rgb(0 0 0 / .28);
}
.sedialect-player-grip {
  position: absolute; top: 50%; left: 50%; width: 34px; height: 34px; margin: -17px 0 0 -17px; border-radius: 50%;
  display: grid; place-items: center; color: #22262c; background: #fff; box-shadow: 0 1px 6px rgb(0 0 0 / .45);
}
.sedialect-player-divider:focus-visible .sedialect-player-grip { outline: 3px solid var(--accent); outline-offset: 2px; }
.sedialect-player-message {
  position: absolute; inset: 0; display: grid; place-items: center; padding: 20px; text-align: center; color: #d3d7de;
  background: #0b0c0e; font-size: 13px;
}
.sedialect-player-message[data-kind="error"] > span {
  max-width: 46em; padding: 12px 16px; border: 1px solid #6b3a3a; border-left: 3px solid #e5736b; border-radius: 6px;
  background: #211718; color: #f3d9d7; text-align: left; overflow-wrap: anywhere;
}

.sedialect-player-panel { padding: 8px 12px 10px; flex: none; }
.sedialect-player-scrub { display: block; width: 100%; height: 24px; margin: 0; padding: 0; background: none; cursor: pointer;
  appearance: none; -webkit-appearance: none; border: 0; box-shadow: none; }
.sedialect-player-scrub::-webkit-slider-runnable-track {
  height: 4px; border-radius: 2px;
  background: linear-gradient(to right, var(--accent) var(--at, 0%), var(--line) var(--at, 0%));
}
.sedialect-player-scrub::-moz-range-track { height: 4px; border-radius: 2px; background: var(--line); }
.sedialect-player-scrub::-moz-range-progress { height: 4px; border-radius: 2px; background: var(--accent); }
.sedialect-player-scrub::-webkit-slider-thumb {
  -webkit-appearance: none; width: 14px; height: 14px; margin-top: -5px; border-radius: 50%; background: var(--accent);
  border: 2px solid var(--bg);
}
.sedialect-player-scrub::-moz-range-thumb { width: 10px; height: 10px; border-radius: 50%; background: var(--accent); border: 2px solid var(--bg); }
.sedialect-player .sedialect-player-scrub:focus-visible { outline: none; }
.sedialect-player-scrub:focus-visible::-webkit-slider-thumb { box-shadow: 0 0 0 3px color-mix(in srgb, var(--accent) 45%, transparent); }
.sedialect-player-scrub:focus-visible::-moz-range-thumb { box-shadow: 0 0 0 3px color-mix(in srgb, var(--accent) 45%, transparent); }

.sedialect-player-bar { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 14px; }
.sedialect-player-group { display: flex; align-items: center; gap: 2px; }
.sedialect-player-rest { gap: 6px; }
.sedialect-player-group[data-push] { margin-left: auto; }
.sedialect-player-time { padding: 0 4px; color: var(--quiet); white-space: nowrap; }
.sedialect-player-time b { color: var(--text); font-weight: 600; }
.sedialect-player button, .sedialect-player select {
  height: 32px; min-width: 32px; margin: 0; padding: 0 8px; border: 0; border-radius: 6px; color: var(--text);
  background: transparent; font: inherit; cursor: pointer; box-shadow: none; display: inline-grid; place-items: center;
}
.sedialect-player button:hover, .sedialect-player select:hover { background: var(--raised); }
.sedialect-player select { padding: 0 4px; border: 1px solid var(--line); background: var(--bg); width: auto; appearance: auto; }
.sedialect-player option { color: var(--text); background: var(--bg); }
.sedialect-player :is(button, select, input):focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
.sedialect-player :is(button, select, input):disabled { opacity: .4; cursor: default; }
.sedialect-player svg { display: block; }
.sedialect-player-play { background: var(--raised) !important; }
.sedialect-player-modes { padding: 2px; gap: 2px; border-radius: 8px; background: var(--raised); }
.sedialect-player-modes button { height: 28px; padding: 0 10px; color: var(--quiet); white-space: nowrap; }
.sedialect-player-modes button[aria-pressed="true"] { color: var(--text); background: var(--bg); box-shadow: 0 0 0 1px var(--line); }
.sedialect-player-loop[aria-pressed="true"] { color: var(--accent); }
.sedialect-player-zoom { min-width: 46px !important; }

.sedialect-player-plots {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 10px 20px;
  padding: 10px 12px 12px; border-top: 1px solid var(--line); flex: none; max-height: 220px; overflow: auto;
}
.sedialect-player-series-head { display: flex; align-items: baseline; gap: 8px; margin-bottom: 3px; white-space: nowrap; }
.sedialect-player-series-name { color: var(--quiet); }
.sedialect-player-series-now { font-weight: 600; }
.sedialect-player-series-range { margin-left: auto; color: var(--quiet); font-size: 11px; }
.sedialect-player-series-plot {
  position: relative; height: 44px; cursor: crosshair; touch-action: pan-y;
  background: linear-gradient(var(--line), var(--line)) 0 100% / 100% 1px no-repeat;
}
.sedialect-player-series-plot svg { width: 100%; height: 100%; overflow: visible; }
.sedialect-player-series-plot path {
  fill: none; stroke: var(--series); stroke-width: 1.75; vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round;
}
.sedialect-player-cursor { position: absolute; top: -2px; bottom: 0; width: 1px; background: var(--quiet); opacity: .6; pointer-events: none; }
.sedialect-player-dot {
  position: absolute; width: 8px; height: 8px; margin: -4px 0 0 -4px; border-radius: 50%; background: var(--series);
  box-shadow: 0 0 0 2px var(--bg); pointer-events: none;
}
@container (max-width: 560px) {
  .sedialect-player-panel { padding: 6px 8px 8px; }
  .sedialect-player-plots { padding: 8px 10px 10px; gap: 8px 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 120px), 1fr)); }
  .sedialect-player-series-range { display: none; }
  .sedialect-player-series-plot { height: 36px; }
  .sedialect-player-bar { gap: 6px 8px; }
  .sedialect-player-modes { order: 1; flex: 1 1 100%; }
  .sedialect-player-modes button { flex: 1; padding: 0 4px; }
  .sedialect-player-group[data-push] { margin-left: 0; }
  .sedialect-player-rest { order: 2; flex: 1 1 auto; justify-content: space-between; }
  .sedialect-player-time { margin-left: auto; }
}
@media (pointer: coarse) {
  .sedialect-player button, .sedialect-player select { height: 40px; min-width: 40px; }
  .sedialect-player-modes button { height: 36px; }
  .sedialect-player-scrub { height: 32px; }
}
@media (prefers-reduced-motion: reduce) { .sedialect-player-name { transition: none; } }
`;
