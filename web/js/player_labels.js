// What the player says. Hosts may replace any of it through the option `labels`.

const en = {
  player: "Video comparison",
  stage: "{left} and {right}, frame {frame}",
  play: "Play",
  pause: "Pause",
  previous: "Previous frame",
  next: "Next frame",
  frame: "Frame",
  frameOf: "Frame {frame} of {frames}, {seconds} s",
  view: "View",
  wipe: "Wipe",
  side: "Side by side",
  difference: "Difference",
  divider: "Divider",
  dividerAt: "{percent} % {left}, {rest} % {right}",
  gain: "Amplification of the difference",
  speed: "Speed",
  loop: "Loop",
  zoomIn: "Zoom in",
  zoomOut: "Zoom out",
  zoomReset: "Fit",
  series: "{name} per frame, {low} to {high} {unit}",
  noValue: "no value",
  loading: "Loading",
  errorMissing:
    "{side}: the server does not hand out this video (HTTP {status}). It may have been deleted; run again to make it anew.",
  errorFormat: "{side}: this file is not a video that this browser plays.",
  errorLoad: "{side}: this file is missing, or is not a video that this browser plays.",
  errorDecode: "{side}: this video is damaged, or the browser cannot decode it.",
  errorInput: "The comparison cannot be shown: {reason}",
  empty: "Run the workflow, and both videos appear here.",
};

const zh = {
  player: "视频对比",
  stage: "{left} 与 {right}，第 {frame} 帧",
  play: "播放",
  pause: "暂停",
  previous: "上一帧",
  next: "下一帧",
  frame: "帧",
  frameOf: "第 {frame} 帧，共 {frames} 帧，{seconds} 秒",
  view: "视图",
  wipe: "划动",
  side: "并排",
  difference: "差异",
  divider: "分隔线",
  dividerAt: "{left} {percent}%，{right} {rest}%",
  gain: "差异放大倍数",
  speed: "速度",
  loop: "循环",
  zoomIn: "放大",
  zoomOut: "缩小",
  zoomReset: "适应",
  series: "每帧 {name}，{low} 至 {high} {unit}",
  noValue: "无数值",
  loading: "加载中",
  errorMissing: "{side}：服务器未提供此视频（HTTP {status}）。文件可能已被删除，请重新运行。",
  errorFormat: "{side}：浏览器无法播放此文件。",
  errorLoad: "{side}：文件不存在，或浏览器无法播放此视频格式。",
  errorDecode: "{side}：视频已损坏，或浏览器无法解码。",
  errorInput: "无法显示对比：{reason}",
  empty: "运行工作流后，两个视频会显示在这里。",
};

const ja = {
  player: "動画の比較",
  stage: "{left} と {right}、フレーム {frame}",
  play: "再生",
  pause: "一時停止",
  previous: "前のフレーム",
  next: "次のフレーム",
  frame: "フレーム",
  frameOf: "フレーム {frame} / {frames}、{seconds} 秒",
  view: "表示",
  wipe: "ワイプ",
  side: "並べる",
  difference: "差分",
  divider: "境界線",
  dividerAt: "{left} {percent}%、{right} {rest}%",
  gain: "差分の増幅",
  speed: "速度",
  loop: "ループ",
  zoomIn: "拡大",
  zoomOut: "縮小",
  zoomReset: "全体",
  series: "フレームごとの {name}、{low} から {high} {unit}",
  noValue: "値なし",
  loading: "読み込み中",
  errorMissing:
    "{side}：サーバーがこの動画を返しません（HTTP {status}）。削除された可能性があります。もう一度実行してください。",
  errorFormat: "{side}：このブラウザーで再生できないファイルです。",
  errorLoad: "{side}：ファイルがないか、このブラウザーで再生できない動画です。",
  errorDecode: "{side}：動画が壊れているか、ブラウザーがデコードできません。",
  errorInput: "比較を表示できません：{reason}",
  empty: "ワークフローを実行すると、両方の動画がここに表示されます。",
};

export const LABELS = { en, zh, ja };

/** The labels of a locale such as "zh-TW", English where there are none, with replacements. */
export function labelsFor(locale, replacements = {}) {
  return { ...en, ...LABELS[String(locale ?? "en").split(/[-_]/)[0]], ...replacements };
}

/** "Frame {frame}" with its values put in. */
export const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
