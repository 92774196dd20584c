// What our widgets on nodes say, by ComfyUI's language.

const WORDS = {
  en: {
    more: "More settings",
    fewer: "Fewer settings",
    text: "Text of {title}",
    SeDialectReport: "Run the workflow, and the report appears here.",
    SeDialectFormatbook: "Run the workflow, and the dialects appear here.",
  },
  zh: {
    more: "更多设置",
    fewer: "收起设置",
    text: "{title}的文字",
    SeDialectReport: "运行工作流后，报告显示在这里。",
    SeDialectFormatbook: "运行工作流后，方言显示在这里。",
  },
  ja: {
    more: "その他の設定",
    fewer: "設定をたたむ",
    text: "{title}のテキスト",
    SeDialectReport: "ワークフローを実行すると、レポートがここに表示されます。",
    SeDialectFormatbook: "ワークフローを実行すると、方言がここに表示されます。",
  },
};

export const LANGUAGES = Object.keys(WORDS);

/** The words of a language as ComfyUI names it ("zh", "zh-TW"); English where there are none. */
export function wordsFor(locale) {
  return WORDS[locale] ?? WORDS[String(locale ?? "").split("-")[0]] ?? WORDS.en;
}
